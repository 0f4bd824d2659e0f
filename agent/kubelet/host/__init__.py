"""This host as a Node: registered, kept known to the cluster, and shut down in order."""
