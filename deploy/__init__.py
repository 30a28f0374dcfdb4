"""Launching and watching runs: configuration, local launcher, live view, report."""
