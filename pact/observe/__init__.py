"""Event sources: they tell the agent when to observe. ``open_observers`` is the way in."""

from pact.observe.observers import Observers, open_observers

__all__ = ["Observers", "open_observers"]
