"""Probes: when one is due, one attempt, and what a row of results means."""
