"""Shared by clients and server: requests, tensors as JSON and as protobuf, signatures, errors, the files of a model folder.

Nothing here imports Keras or TensorFlow.
"""
