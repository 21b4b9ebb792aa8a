"""This process on this machine: its clock, its supervisor, its descriptors, what it believes because of who owns it."""
