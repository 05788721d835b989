"""A log of a made-up feed, and what is true of it."""
