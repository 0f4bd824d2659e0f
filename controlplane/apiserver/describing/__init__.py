"""What this server says of itself: discovery and OpenAPI."""
