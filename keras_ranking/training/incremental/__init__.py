"""Incremental training: a quadratic penalty around earlier weights, from measured Fisher information."""
