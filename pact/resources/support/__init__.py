"""What kinds share, and what one kind needs that is too large for its own file."""
