"""The cluster's shell: aggregators, the root, its log and its public side. The decisions are in ``pact.core``."""
