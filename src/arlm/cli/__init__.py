"""The command line: the only part that reads argv, writes to a terminal and knows exit codes."""
