"""One attention kernel a backend, imported on first use: only the active backend needs to be installed."""
