"""The subcommands of `clothing-model`, a module each."""
