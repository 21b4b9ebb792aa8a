"""This process on this machine: its clock, its supervisor, its descriptors, and the owners of the files that it
trusts."""

from typing import Final

#: Where an agent listens unless it is told otherwise.
CONTROL_SOCKET: Final = "/run/pact/agent.sock"
