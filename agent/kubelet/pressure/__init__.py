"""A node that runs short: what is left, what is cleared up, and which pod has to go."""
