"""Container images made, packed and taken over with plain Python: no builder, no registry, no network needed."""
