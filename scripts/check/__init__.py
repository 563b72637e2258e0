"""Whether this machine can do what a table asks of it, found out in minutes instead of days."""
