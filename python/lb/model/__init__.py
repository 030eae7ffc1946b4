"""Immutable data that every layer above shares: the snapshot a backend works from, and the clocks that give time."""
