"""What the API is told of pods: their status, why their containers wait, and how they ended."""
