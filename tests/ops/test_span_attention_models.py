"""Span attention as an operation of a Keras model: saved, loaded and trained."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_ranking.ops import Spans, span_attention
from tests.ops.support import packed_rows

BACKEND = keras.backend.backend()


@keras.saving.register_keras_serializable(package="test_span_attention")
class Causal(keras.layers.Layer):
    """Spans of its segments."""

    def call(self, segments):
        return Spans.causal(segments)

    def compute_output_spec(self, segments):
        return Spans(*(keras.KerasTensor(segments.shape, "int32") for _ in range(3)))


def small_model():
    x, segments = keras.Input((None, 8)), keras.Input((None,), dtype="int32")
    heads = keras.layers.Reshape((-1, 2, 4))(keras.layers.Dense(8)(x))
    out = span_attention(heads, heads, heads, Causal()(segments))
    return keras.Model([x, segments], keras.layers.Dense(1)(keras.layers.Reshape((-1, 8))(out)))


def test_functional_model_saves_and_loads(rng, tmp_path):
    model = small_model()
    inputs = [rng.standard_normal((2, 9, 8)).astype("float32"), packed_rows(rng, 2, 9, 5)[0]]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(each(inputs)) for each in (model, loaded)))


@pytest.mark.slow
@pytest.mark.skipif(BACKEND == "torch", reason="compiled training is TensorFlow's and JAX's")
def test_compiled_and_uncompiled_training_have_equal_losses(rng):
    """Batches of a PyDataset, whose batch size is unknown when TensorFlow traces."""

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, number):
            rng = np.random.default_rng(number)
            return (rng.standard_normal((2, 70, 8)).astype("float32"), packed_rows(rng, 2, 70, 30)[0]), rng.standard_normal((2, 70, 1))

    losses = []
    for compiled in (True, False):
        keras.utils.set_random_seed(3)
        model = small_model()
        model.compile("sgd", "mse", jit_compile=compiled)
        losses.append(model.fit(Batches(), epochs=2, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0][0] != losses[0][1]
