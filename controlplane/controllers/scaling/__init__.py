"""HorizontalPodAutoscalers: from metrics to replicas."""
