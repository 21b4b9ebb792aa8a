"""What the root decides: ``root.Root`` on top, its log below, a file for each thing that people ask of it."""
