"""From a Keras model to the next version of a served model: graph, signatures, warm-up requests, server configuration."""
