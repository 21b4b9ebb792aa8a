"""The command line. Small files, one a group of commands; rich is imported only where a person looks."""
