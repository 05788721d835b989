"""A trained model with its embedding tables in int8, for serving."""

from __future__ import annotations

from typing import Any


def quantize_embeddings(model: Any) -> Any:
    """The same model with every embedding table in row-wise int8 (`QuantizedEmbedding`); other weights are unchanged.

    LiRank (2402.06859): after training, middle-max, rows gathered as int8 and then scaled; parity with full precision is stated.
    The result is for serving: its tables cannot be trained. It can be saved and loaded like any model.

    Args:
        model: a `RankingModel`.

    Returns:
        A new `RankingModel`; `model` itself is not changed, and is returned if it is quantised.

    Raises:
        ValueError: not a `RankingModel`, or a table with values that are not finite, by name.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> model = kr.models.LiRank(log.schema.fit(log.events), history_features=())
        >>> small = kr.serving.quantize_embeddings(model)
        >>> small.quantized
        True
    """
    import keras

    from keras_ranking.layers import QuantizedEmbedding, quantize_rows
    from keras_ranking.models import RankingModel
    from keras_ranking.models.wiring import copied

    if not isinstance(model, RankingModel):
        raise ValueError(f"`model` must be a RankingModel. Received: {type(model).__name__}")
    if model.quantized:
        return model
    small = type(model).from_config({**model.get_config(), "quantized": True})
    # Both are built from the same configuration, so their layers have the same order; only the tables differ.
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
            target.assign(copied(source))
    return small


def _layers(model: Any) -> list[Any]:
    return list(model._flatten_layers(include_self=False))
