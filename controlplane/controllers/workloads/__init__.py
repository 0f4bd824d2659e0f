"""Pods wanted by Deployments, ReplicaSets, StatefulSets, DaemonSets, Jobs and CronJobs, and their budgets."""
