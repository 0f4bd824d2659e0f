"""What is written down of requests: audit events, and one plain sentence per change."""
