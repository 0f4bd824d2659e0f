"""Addresses and ports of Services: ranges, what is given out, and where a Service is reached."""
