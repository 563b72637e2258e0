"""What a run or a table will take: parameters, memory, operations, hours."""
