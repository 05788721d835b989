"""How much an event counts in training: place, age, inverse propensities."""
