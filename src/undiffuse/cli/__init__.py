"""The command line: one file per subcommand, without algorithms. Imports nothing heavy before a command runs."""
