"""The command line. Small files, one for each group of commands; rich is imported only for output to a terminal."""
