"""Logs beyond one machine's memory: shards on disk, and how they are prepared and read."""
