"""`transfer`: trunk and constants kept, heads made, tables grown or shared, frozen weights equal to the bit, resume, export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import Log
from keras_ranking.ops import fingerprint64
from keras_ranking.training import compare_transfer, evaluate, read_checkpoint, transfer, warm_start
from keras_ranking.training.transfer.columns import old_rows, schema_for
from tests.training.crashes import CrashAfter
from tests.training.transfer import surfaces

ONE = {"epochs": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("sources")
    return {name: surfaces.source(name, base / name) for name in surfaces.SOURCES}


@pytest.fixture(scope="module")
def target() -> Log:
    return surfaces.second()


def weights(model: Any, names: list[str]) -> list[np.ndarray]:
    return [np.array(weight) for name in names for weight in model.get_layer(name).get_weights()]


def differ(one: list[np.ndarray], other: list[np.ndarray]) -> list[bool]:
    return [not np.array_equal(a, b) for a, b in zip(one, other, strict=True)]


# -- what is kept -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lirank", "cadet"])
def test_a_frozen_trunk_keeps_its_bits_and_the_heads_learn(name: str, folders: Any, target: Log, tmp_path: Path) -> None:
    before: Any = kr.models.load(folders[name])
    model, history = transfer(target, folders[name], tmp_path, ["like"], options={"epochs": 2}, verbose=False)
    about = history["transfer"]
    assert about["kept"] == about["frozen"] and model.tasks == ["like"]
    assert sorted(about["new"]) == sorted(model.head_layers)
    statistics = [w for w in model.get_layer("number_norm").weights if "moving" in w.path] if name == "lirank" else [None]
    assert len(statistics) == (2 if name == "lirank" else 1)
    assert not any(differ(weights(before, about["kept"]), weights(model, about["kept"])))
    loaded: Any = kr.models.load(tmp_path)
    assert not any(differ(weights(model, about["kept"]), weights(loaded, about["kept"])))
    assert {v.path.split("/")[0] for v in loaded.trainable_variables} <= set(model.head_layers)
    # Control: with all weights trained the trunk moves, and its moving statistics do.
    moved, history = transfer(target, folders[name], None, ["like"], "all", options=ONE, verbose=False)
    assert history["transfer"]["frozen"] == []
    assert all(any(differ(weights(before, [part]), weights(moved, [part]))) for part in ("number_norm",) if name == "lirank")
    assert any(differ(weights(before, about["kept"]), weights(moved, about["kept"])))


@pytest.mark.quickest
def test_constants_are_those_of_the_source(folders: Any, target: Log) -> None:
    model, _ = transfer(target, folders["lirank"], None, ["like"], options=ONE, verbose=False)
    old, new = ({one.name: one for one in each.features} for each in (kr.models.load(folders["lirank"]).schema, model.schema))
    fitted = {one.name: one for one in target.schema.fit(target.split("train")).features}
    for name in ("age_hours", "editor_score"):
        assert new[name] == old[name] != fitted[name]
    assert new["item_views_24h"] == fitted["item_views_24h"] != old["item_views_24h"]  # the trunk does not read it
    assert model.schema.tasks == (kr.Task(name="like"),)


@pytest.mark.quickest
def test_options_of_training_are_those_of_the_source(folders: Any, target: Log) -> None:
    _, history = transfer(target, folders["lirank"], None, ["like"], "all", options=ONE, verbose=False)
    assert history["training"]["row_length"] == 64 and history["training"]["batch_size"] == 4
    assert history["training"]["trunk_learning_rate"] == pytest.approx(0.1 * history["training"]["learning_rate"])
    _, history = transfer(target, folders["lirank"], None, ["like"], "all", options={**ONE, "trunk_learning_rate": 1e-5}, verbose=False)
    assert history["training"]["trunk_learning_rate"] == 1e-5


@pytest.mark.quickest
def test_the_source_as_it_is_scores_as_before(folders: Any, tmp_path: Path) -> None:
    """Through the other schema, grown tables and other names, metrics of a log stay as the source has them."""
    log = surfaces.first()
    expected = evaluate(folders["lirank"], log, "validation")["click"]
    grown = [
        one.model_copy(update={"buckets": 2 * one.buckets - 1})
        if one.name == "item_id"
        else one.model_copy(update={"vocabulary": ("new", *reversed(one.vocabulary))})
        if one.name == "topic"
        else one
        for one in log.schema.features
    ]
    names = {"item_id": "clip_id", "topic": "subject", "click": "played"}
    other = surfaces.renamed(Log(log.events, log.schema.model_copy(update={"features": tuple(grown)}), "other"), names)
    columns = {"clip_id": "item_id", "subject": "topic"}
    report = compare_transfer(other, folders["lirank"], ["click"], ways=("source",), options={"columns": columns})
    row = report.rows.iloc[0]
    assert row["scored_by"] == "click"
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    # Control: without the names there is no such column.
    with pytest.raises(ValueError, match="'item_id' is not in its schema; 'topic' is not in its schema"):
        compare_transfer(other, folders["lirank"], ["click"], ways=("source",))


# -- tables -------------------------------------------------------------------------------------------------------------------


@pytest.mark.quickest
def test_ids_keep_their_rows_when_a_table_grows() -> None:
    small, large = kr.Id("item_id", buckets=100), kr.Id("item_id", buckets=1 + 3 * 99)
    ids = [f"item {number}" for number in range(3000)] + [None]
    places = np.asarray(old_rows(small, large))
    assert places[large.encode(ids)].tolist() == small.encode(ids).tolist()
    prints = np.array([int(value) for value in fingerprint64([f"item {number}" for number in range(3000)])], dtype=object) % 2**64
    assert small.encode(ids[:-1]).tolist() == [1 + int(value % 99) for value in prints]
    # Control: a size that is no multiple moves them.
    other = kr.Id("item_id", buckets=250)
    assert (np.asarray(old_rows(small, other))[other.encode(ids)] != small.encode(ids)).mean() > 0.5


@pytest.mark.quickest
def test_tables_that_grow_and_tables_that_begin_anew(folders: Any, target: Log) -> None:
    old: Any = kr.models.load(folders["lirank"])
    log = surfaces.with_word(target, "chess")
    model, history = transfer(log, old, None, ["like"], options={**ONE, "new_tables": ["item_id"]}, verbose=False)
    topic = next(one for one in model.schema.features if one.name == "topic")
    assert topic.vocabulary == (*(f"topic_{number}" for number in range(6)), "chess")
    before, after = (
        {v.path: np.array(keras.ops.convert_to_numpy(v.value)) for v in each.get_layer("ids").weights} for each in (old, model)
    )
    table, ids = "ids/table_topic/embeddings", "ids/table_item_id/embeddings"
    assert history["transfer"]["grown"] == {"ids/table_topic": [7, 8]} and "ids/table_item_id" in history["transfer"]["new"]
    assert np.array_equal(after[table][:7], before[table])
    np.testing.assert_allclose(after[table][7], before[table][1:].astype(np.float64).mean(axis=0), rtol=1e-6, atol=1e-9)
    assert "ids/table_topic" in history["transfer"]["frozen"] and "ids/table_item_id" not in history["transfer"]["frozen"]
    assert (after[ids] != before[ids]).mean() > 0.9 and any(v.path == ids for v in model.trainable_variables)


@pytest.mark.quickest
def test_all_tables_of_an_id_without_buckets_begin_anew(target: Log, tmp_path: Path) -> None:
    whole = next(one for one in target.schema.features if one.name == "item_id").model_copy(update={"buckets": None, "divisor": 65_536})
    logs = [surfaces.changed(log, item_id=whole) for log in (surfaces.first(), target)]
    old: Any = kr.models.load(surfaces.source("lirank", tmp_path, logs[0]))
    model, history = transfer(logs[1], old, None, ["like"], options={**ONE, "new_tables": ["item_id"]}, verbose=False)
    assert history["transfer"]["new"].count("ids/table_item_id") == 1 and "ids/table_topic" in history["transfer"]["frozen"]
    before, after = (
        {v.path: np.array(keras.ops.convert_to_numpy(v.value)) for v in each.get_layer("ids").weights} for each in (old, model)
    )
    tables = [path for path in before if path.startswith("ids/table_item_id/")]
    assert len(tables) == 4 and all((after[path] != before[path]).mean() > 0.9 for path in tables)
    assert set(tables) < {v.path for v in model.trainable_variables}
    # Control: without the option they stay as they are.
    model, _ = transfer(logs[1], old, None, ["like"], options=ONE, verbose=False)
    kept = {v.path: np.array(keras.ops.convert_to_numpy(v.value)) for v in model.get_layer("ids").weights}
    assert all(np.array_equal(kept[path], before[path]) for path in before)


@pytest.mark.quickest
def test_heads_are_kept_where_they_fit(folders: Any, target: Log) -> None:
    old: Any = kr.models.load(folders["cadet"])
    rate = {**ONE, "learning_rate": 1e-12, "weight_decay": 0.0, "heads": "kept"}
    model, history = transfer(target, old, None, options=rate, verbose=False)
    assert "towers_click" in history["transfer"]["kept"] and history["transfer"]["new"] == ["towers_like"]
    for one, other in zip(weights(old, ["towers_click"]), weights(model, ["towers_click"]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)
    with pytest.raises(ValueError, match=r"heads='kept' needs layers of tasks that the source has.*\['like'\]"):
        transfer(target, old, None, ["like"], options=rate, verbose=False)


# -- rates --------------------------------------------------------------------------------------------------------------------


@pytest.mark.quickest
@pytest.mark.parametrize("rule", ["same", "adagrad", "rowwise_adagrad"])
def test_a_trunk_moves_by_its_own_rate(rule: str, folders: Any, target: Log) -> None:
    """One step of a clipped AdamW moves each weight by its rate at most; the trunk by a thousandth."""
    old: Any = kr.models.load(folders["lirank"])
    options = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-2, "trunk_learning_rate": 1e-5, "weight_decay": 0.0}
    options |= {"schedule": "constant", "table_optimizer": rule, **({} if rule == "same" else {"table_learning_rate": 0.5})}
    before: dict[str, np.ndarray] = {}

    class Begin(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            before.update({v.path: np.array(keras.ops.convert_to_numpy(v.value)) for v in self.model.trainable_variables})

    model, history = transfer(target, old, None, ["like"], "all", options=options, verbose=False, callbacks=[Begin()])
    assert len(history["epochs"]["loss"]) == 1
    moved = {v.path: float(np.abs(np.array(keras.ops.convert_to_numpy(v.value)) - before[v.path]).max()) for v in model.trainable_variables}
    heads = {path: step for path, step in moved.items() if path.split("/")[0] in model.head_layers}
    tables = {path: step for path, step in moved.items() if path.endswith("/embeddings")}
    trunk = {path: step for path, step in moved.items() if path not in heads and path not in tables}
    assert max(heads.values()) > 5e-3 and 0 < max(trunk.values()) < 2e-5
    assert max(tables.values()) < (2e-5 if rule == "same" else 0.5 * 1e-3 * 4)  # row-wise: of the root mean square of a row of four


@pytest.mark.quickest
def test_rates_without_effect(folders: Any, target: Log) -> None:
    for options, message in (
        ({"trunk_learning_rate": 1e-4}, "`trunk_learning_rate` has no effect with train='heads'"),
        ({"heads_epochs": 2}, "`heads_epochs` has no effect without train='heads-then-all'"),
    ):
        with pytest.raises(ValueError, match=message):
            transfer(target, folders["lirank"], None, ["like"], options=options, verbose=False)
    with pytest.raises(ValueError, match="`trunk_learning_rate` has no effect on an optimiser of Keras"):
        options = {"trunk_learning_rate": 1e-4, "optimizer": keras.optimizers.Adam(1e-3)}
        transfer(target, folders["lirank"], None, ["like"], "all", options=options, verbose=False)


# -- both parts, resume, the daily step, serving ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.quickest
@pytest.mark.parametrize("after", [3, 11])
def test_an_interrupted_transfer_reaches_the_same_weights(after: int, folders: Any, target: Log, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tasks": ["like"], "train": "heads-then-all", "verbose": False}
    settings |= {"options": {"epochs": 1, "heads_epochs": 1, "row_length": 32, "batch_size": 3, "checkpoint_every": 2}}
    whole, history = transfer(target, folders["lirank"], tmp_path / "whole", **settings)
    steps = read_checkpoint(tmp_path / "whole" / "heads").about["progress"]["step"]
    assert 3 < steps < 11 < 2 * steps  # one crash in each part
    with pytest.raises(RuntimeError, match="crash"):
        transfer(target, folders["lirank"], tmp_path / "broken", callbacks=[CrashAfter(after)], **settings)
    assert (tmp_path / "broken" / "heads" / "model.keras").exists() is (after > steps)
    resumed, again = transfer(target, folders["lirank"], tmp_path / "broken", resume=True, **settings)
    assert not any(differ(whole.get_weights(), resumed.get_weights()))
    assert again["transfer"] == history["transfer"] and again["heads"]["transfer"]["frozen"] != []
    # The heads of the first part are those of the second before it began; the trunk of the first part is the source's.
    heads: Any = kr.models.load(tmp_path / "whole" / "heads")
    old: Any = kr.models.load(folders["lirank"])
    kept = history["heads"]["transfer"]["kept"]
    assert not any(differ(weights(old, kept), weights(heads, kept))) and any(differ(weights(old, kept), weights(whole, kept)))
    # Control: another source is refused.
    with pytest.raises(ValueError, match="made with other options or other data"):
        other: Any = kr.models.load(folders["lirank"])
        other.set_weights([weight + 1e-3 for weight in other.get_weights()])
        (tmp_path / "broken" / "checkpoint.npz").unlink()
        about = read_checkpoint(tmp_path / "broken" / "heads")
        np.savez(
            tmp_path / "broken" / "heads" / "checkpoint.npz",
            about=np.frombuffer(_unfinished(about.about).encode(), dtype=np.uint8),
            **about.arrays,
        )
        transfer(target, other, tmp_path / "broken", resume=True, **settings)


def _unfinished(about: dict[str, Any]) -> str:
    import json

    return json.dumps({**about, "finished": False})


@pytest.mark.quickest
@pytest.mark.parametrize("way", ["heads", "all"])
def test_the_daily_step_of_a_transfer(way: str, folders: Any, target: Log, tmp_path: Path) -> None:
    model, _ = transfer(target, folders["lirank"], tmp_path / "day1", ["like"], way, options=ONE, verbose=False)
    log = Log(target.events, model.schema, "second")
    new = (target.events["split"] == "validation").to_numpy()
    after, history = warm_start(log, tmp_path / "day1", new, tmp_path / "day2", verbose=False)
    assert history["train_events"] == int(new.sum())
    trunk = [layer.name for layer in model.layers if layer.weights and layer.name not in model.head_layers]
    assert any(differ(weights(model, trunk), weights(after, trunk))) is (way == "all")
    assert any(differ(weights(model, model.head_layers), weights(after, model.head_layers)))


@pytest.mark.slow
@pytest.mark.one_backend
def test_a_transfer_is_exported_without_skew(folders: Any, target: Log, tmp_path: Path) -> None:
    log = surfaces.with_word(target, "chess")
    model, _ = transfer(log, folders["lirank"], tmp_path / "run", ["like"], options=ONE, verbose=False)
    version = kr.serving.export(model, tmp_path / "served", run=tmp_path / "run", verify=False)
    report = kr.serving.check_skew(version, model, log.events, sample=8)
    assert not report.found and report.same_schema, report.summary()
    # Control: a model that was fitted on the new surface reads numbers otherwise.
    own, _ = kr.training.train(log, "lirank", options={**surfaces.LIRANK, "epochs": 1, "tasks": ["like"]}, verbose=False)
    assert kr.serving.check_skew(version, own, log.events, sample=8).found


# -- messages -----------------------------------------------------------------------------------------------------------------


@pytest.mark.quickest
def test_columns_that_do_not_fit_are_all_named(folders: Any, target: Log) -> None:
    source: Any = kr.models.load(folders["lirank"])
    log = surfaces.second(
        item_id=kr.Id("item_id", buckets=5000),
        age_hours=kr.Number("age_hours", transform="log1p"),
        editor_score=kr.Id("editor_score", buckets=7),
    )
    with pytest.raises(ValueError) as error:
        transfer(log, source, tasks=["like"])
    text = str(error.value)
    assert "'item_id' has buckets=5000 in the log and 4096 in the source; it can grow to 1 + k * 4,095, such as 8,191" in text
    assert "'age_hours' has transform='log1p' in the log and 'log1p_standardise' in the source" in text
    assert "'editor_score' is a Id known as 'item' in the log, and a Number known as 'item' in the source" in text


@pytest.mark.quickest
def test_arguments_that_do_not_fit(folders: Any, target: Log) -> None:
    source: Any = kr.models.load(folders["lirank"])
    for change, message in (
        ({"train": "head"}, r"`train` must be one of \('heads', 'all', 'heads-then-all'\)"),
        ({"tasks": ["watch"]}, "unknown task 'watch'"),
        ({"tasks": []}, "`tasks` must name at least one task"),
        ({"options": {"hidden": (9,)}}, "leave options of the trunk as they are"),
        ({"options": {"hiden": (9,)}}, "did you mean 'hidden'"),
        ({"options": {"columns": {"nothing": "topic"}}}, "`columns` must name columns of the log"),
        ({"options": {"columns": {"topic": "nothing"}}}, "`columns` must give columns of the source"),
        ({"options": {"new_tables": ["age_hours"]}}, "`new_tables` must name ids or categories of the log"),
        ({"options": {"ensemble": 2}}, "`ensemble` does not go with a transfer"),
        ({"options": {"heads": "old"}}, "`heads` must be 'new' or 'kept'"),
        ({"options": {"number_bins": 4}}, "`number_bins` is that of the source"),
        ({"resume": True}, "`resume` needs `out`"),
        ({"options": {"checkpoint_every": 2}}, "`checkpoint_every` needs `out`"),
    ):
        with pytest.raises(ValueError, match=message):
            transfer(target, source, **{"tasks": ["like"], "verbose": False, **change})
    with pytest.raises(ValueError, match="must be a trained CADET, FeedSR, LiRank, AmortizedDLRM or LiGR. Received: a model with int8"):
        transfer(target, kr.serving.quantize_embeddings(source))
    with pytest.raises(ValueError, match="Received: a model made by Ensemble"):
        transfer(target, kr.models.ensemble([source]))


@pytest.mark.quickest
def test_the_delay_is_that_of_the_log(folders: Any, target: Log) -> None:
    schema = target.schema.model_copy(update={"feedback_delay": 7200, "epoch": 1_500_000_000})
    source: Any = kr.models.load(folders["cadet"])
    model, _ = transfer(replace(target, schema=schema), source, tasks=["like"], options=ONE, verbose=False)
    assert source.arguments["delay"] == 600 and model.arguments["delay"] == 7200
    assert model.schema.epoch == source.schema.epoch and schema_for(source, schema, None, {}).feedback_delay == 7200
