"""The cluster's shell: aggregators, the root, its log and what it publishes. What decides is in ``pact.core``."""
