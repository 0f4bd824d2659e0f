"""Claims and volumes: bound, provisioned, attached, protected."""
