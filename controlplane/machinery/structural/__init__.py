"""The structural schemas of custom resources: whether one is right, and what it does to a value."""
