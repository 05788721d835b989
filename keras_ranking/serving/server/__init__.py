"""The embedded server: listeners for gRPC and REST, versions, batching, limits."""
