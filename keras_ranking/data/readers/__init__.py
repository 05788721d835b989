"""Readers of public logs, each returning a `Log`."""
