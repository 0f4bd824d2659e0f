"""May they: RBAC, what nodes may do, and the reviews that ask the same questions."""
