"""Grafana for a run: dashboards as code, their JSON, what provisions them, and their pictures."""
