"""Many runs: the cells of a table, their statistics, and how they are shown."""
