"""A seeded world for simulation tests and scale benchmarks: the real core over a simulated machine, disk and clock."""
