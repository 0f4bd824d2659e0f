"""The kubelet's own HTTPS API: logs, exec, metrics and statistics."""
