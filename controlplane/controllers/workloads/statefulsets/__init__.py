"""StatefulSets: pods with a name, a place and a store of their own."""
