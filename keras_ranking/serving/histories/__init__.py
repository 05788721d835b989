"""Histories of members for serving: where they are kept, and a client that encodes each once."""
