"""Prometheus for a run: configuration, recording rules, alerts, and a command that starts it."""
