"""Numbers of a training for TensorBoard and MLflow, on every backend."""
