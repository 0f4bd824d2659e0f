"""The cluster's DNS, answered on every node by the agent itself."""
