"""Files of declared state."""
