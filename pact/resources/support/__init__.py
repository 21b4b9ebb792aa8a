"""Code that kinds share, and code of one kind that is too large for its own file."""
