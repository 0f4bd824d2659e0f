"""Admission webhooks: which are asked (`matching`), what they are asked and answer (`reviews`), how they are reached
(`caller`), and when (`dispatch`, the plugin)."""
