"""Keys, links and ports: what agents and aggregators share."""
