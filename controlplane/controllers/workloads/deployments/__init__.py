"""Deployments: rollouts from one template to the next."""
