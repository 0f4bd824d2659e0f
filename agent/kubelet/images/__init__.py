"""Images of containers: had when they are needed, by whose credentials, and who may use which of them."""
