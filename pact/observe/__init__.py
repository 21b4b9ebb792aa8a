"""Event sources: what tells the agent that it is time to look. ``open_observers`` is the way in."""

from pact.observe.observers import Observers, open_observers

__all__ = ["Observers", "open_observers"]
