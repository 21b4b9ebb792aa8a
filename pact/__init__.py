"""pact: optimistic concurrency with commit windows for live HPC nodes (ADR-014)."""

__version__ = "0.3.0"
