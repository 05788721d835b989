"""Whether a training step is compiled in a test that is not about compiling."""

import keras

# XLA takes seconds for a step of TensorFlow. Compiled steps, with the losses of uncompiled ones: tests/models/test_compiled_training.py,
# tests/models/test_lirank.py, tests/losses/test_training.py, tests/optimizers/test_table_optimizer.py.
JIT: bool | str = False if keras.backend.backend() == "tensorflow" else "auto"
