"""A network and a forest in one export: all its checks, plain operations alone, and the scores of the Keras model."""

from __future__ import annotations

from typing import Any

import pytest

import keras_ranking as kr
from keras_ranking.serving.protocol.model_folder import read_card

tf = pytest.importorskip("tensorflow")
lightgbm = pytest.importorskip("lightgbm", reason="LightGBM comes with the extra [dev]")
pytestmark = pytest.mark.one_backend


@pytest.mark.parametrize(("kind", "quantize"), [("LiRank", None), pytest.param("CADET", "int8", marks=pytest.mark.release)])
def test_exported(kind: str, quantize: str | None, tmp_path: Any) -> None:
    log = kr.data.simulate(members=10, days=3, seed=0, feedback_delay=60)
    schema = log.schema.fit(log.events)
    x = kr.training.forest_rows(log.events, schema, ["age_hours", "topic", "hour"])
    options = {"objective": "binary", "verbose": -1, "num_threads": 1, "min_data_in_leaf": 5, "num_leaves": 40}
    booster = lightgbm.train(options, lightgbm.Dataset(x, log.events["click"], categorical_feature=["topic"]), 6)
    small = {"LiRank": {"hidden": (8,), "history_features": ()}, "CADET": {"dim": 8, "num_layers": 1, "num_heads": 2, "tower_hidden": (8,)}}
    network = getattr(kr.models, kind)(schema, id_dim=4, tasks=("click",), **small[kind])
    model = kr.models.with_forest(network, kr.layers.Forest.from_lightgbm(booster))
    version = kr.serving.export(model, tmp_path / "pair", events=None if quantize else log.events, quantize=quantize)
    card = read_card(version)
    assert card.verified["largest_difference"] <= 1e-5
    assert {"candidate_age_hours", "candidate_topic", "candidate_hour"} <= set(card.inputs)
    graph = tf.saved_model.load(str(version)).signatures["serving_default"].graph.as_graph_def()
    used = {node.op for node in graph.node} | {node.op for function in graph.library.function for node in function.node_def}
    assert "BitwiseAnd" in used and not any("XlaCallModule" in op or "PyFunc" in op for op in used)
