"""Callers of TensorFlow Serving and of the embedded server, by gRPC and REST."""
