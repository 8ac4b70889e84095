"""The command line: thin, typed commands over the library."""
