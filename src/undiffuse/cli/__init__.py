"""The command: one file per subcommand; no algorithm lives here. Nothing heavy is imported before a command runs."""
