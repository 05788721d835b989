"""What both ends of a connection share: requests, tensors as JSON and as protobuf, signatures, errors, the files of a model folder.

Nothing here imports Keras or TensorFlow.
"""
