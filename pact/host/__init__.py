"""This process on this machine: its clock, its supervisor, its descriptors, and the owners of the files that it
trusts."""
