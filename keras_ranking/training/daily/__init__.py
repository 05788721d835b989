"""The daily step of a finished training: a Fisher penalty beside its run, effects and exploration, and one report."""
