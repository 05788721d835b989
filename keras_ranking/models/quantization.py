"""A trained model with its embedding tables in int8, for serving."""

from __future__ import annotations

from typing import Any


def quantize_embeddings(model: Any) -> Any:
    """The same model with every embedding table in row-wise int8 (`QuantizedEmbedding`); all else stays as it is.

    LiRank (2402.06859): post-training, middle-max, rows gathered as int8 and scaled afterwards; parity with full precision is
    stated. It is for serving: the tables cannot be trained. It saves and loads like any model.

    Args:
        model: a `RankingModel`.

    Returns:
        A new `RankingModel`; `model` is not changed, and comes back itself if it is quantised already.

    Raises:
        ValueError: not a `RankingModel`, or a table with values that are not finite, which the message names.

    Example:
        >>> small = kr.serving.quantize_embeddings(model)
        >>> small.quantized
        True
    """
    import keras

    from keras_ranking.layers import QuantizedEmbedding, quantize_rows
    from keras_ranking.models import RankingModel

    if not isinstance(model, RankingModel):
        raise ValueError(f"`model` must be a RankingModel. Received: {type(model).__name__}")
    if model.quantized:
        return model
    small = type(model).from_config({**model.get_config(), "quantized": True})
    # Both are built from one recipe, so their layers come in one order; only the tables differ.
    pairs = list(zip(_layers(model), _layers(small), strict=True))
    for old, new in pairs:
        if isinstance(new, QuantizedEmbedding) and isinstance(old, keras.layers.Embedding):
            table = keras.ops.convert_to_numpy(keras.ops.cast(old.embeddings.value, "float32"))
            try:
                parts = quantize_rows(table)
            except ValueError as error:
                raise ValueError(f"table '{old.embeddings.path}': {error}") from error
            for variable, values in zip((new.codes, new.middle, new.scale), parts, strict=True):
                variable.assign(values)
            continue
        own, taken = ([*layer._trainable_variables, *layer._non_trainable_variables] for layer in (old, new))
        for source, target in zip(own, taken, strict=True):
            target.assign(source.value)
    return small


def _layers(model: Any) -> list[Any]:
    return list(model._flatten_layers(include_self=False))
