"""Checks of an exported graph: verification in a fresh process, comparison with logged requests, sample requests."""
