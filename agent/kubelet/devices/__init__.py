"""Devices of this node in containers: by device plugins, and by drivers of ResourceClaims."""
