"""Connections that stay open: exec, attach, port-forward, logs and proxying, over WebSocket and SPDY."""
