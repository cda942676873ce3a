"""The command line: one module per command, imported when it is called. What a command does is done elsewhere."""
