"""Certificates, tokens and roles that the cluster hands out, renews and takes back."""
