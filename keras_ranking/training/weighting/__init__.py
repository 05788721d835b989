"""Weights of events in training: by place, age and inverse propensity."""
