"""CEL expressions with Kubernetes' functions: compiled, checked, priced before they are accepted, and evaluated."""
