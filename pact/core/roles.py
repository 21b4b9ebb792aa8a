"""The roles that people have, on a node and over the cluster.  # S1"""

from __future__ import annotations

from typing import Final

#: The agent itself may do what an administrator may.
RANK: Final = {"viewer": 0, "ops": 1, "admin": 2, "agent": 2}

#: How a person can get another role: on the node itself, and over the cluster.
BY_GROUP: Final = "ask for membership in one of the groups of [access] in agent.toml"
BY_KEY: Final = "whoever administers the cluster gives your key another role, in authorized_keys.toml"
