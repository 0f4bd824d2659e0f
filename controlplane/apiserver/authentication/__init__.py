"""Who asks: certificates, tokens of every kind, front proxies, impersonation."""
