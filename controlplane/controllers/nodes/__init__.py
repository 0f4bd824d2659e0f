"""Nodes: noticed, tainted, given addresses, and freed of pods when they fail."""
