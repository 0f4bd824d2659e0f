"""Namespaces and what hangs together in them: furnished, counted, emptied, collected."""
