"""Attention kernels of each backend, imported on first use: only the active backend needs to be installed."""
