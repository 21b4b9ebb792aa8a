"""The kinds of resources: one file for each."""
