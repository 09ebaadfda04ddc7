"""The project against its peers and against the physical limit, each a command that prints a table."""
