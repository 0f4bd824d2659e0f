"""The container runtime of this node: our own containerd or another one, spoken to over CRI."""
