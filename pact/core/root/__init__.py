"""The decisions of the root: ``root.Root`` on top, its log below, and one file for each kind of request."""
