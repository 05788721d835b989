"""A ranker as a Keras model: what it may be compiled with, what is saved of that, and its layers in int8."""
