"""The command line: serve, classify, download, doctor."""
