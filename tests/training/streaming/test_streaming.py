"""Training on shards: the batches of one shard are those of a frame, several shards are read in the order of the seed, and what is
interrupted goes on to the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data.shards.log import TRAINING
from keras_ranking.training.options import TrainingOptions
from keras_ranking.training.progress import Progress
from keras_ranking.training.setup import compile_for, training_data
from keras_ranking.training.streaming.data import Facts, StreamedData, Weigher, logged_delays
from tests.data.shards.logs import mixed_log

TINY: dict[str, dict[str, Any]] = {
    "cadet": {"dim": 8, "num_layers": 1, "num_heads": 2, "row_length": 64, "batch_size": 2},
    "lirank": {"hidden": (8,), "cross_layers": 1, "row_length": 32, "batch_size": 2, "max_history": 8},
    "ligr": {"dim": 8, "num_layers": 1, "num_heads": 2, "row_length": 32, "batch_size": 2},
}


class Losses(keras.callbacks.Callback):
    """The running mean of the loss after each step, and a stop after some step."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.values: list[float] = []
        self.stop = stop

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.values.append(float(logs["loss"]))
        if self.stop is not None and len(self.values) == self.stop:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def log() -> kr.data.Log:
    return mixed_log(900)


@pytest.fixture(scope="module")
def one(log: kr.data.Log, tmp_path_factory: pytest.TempPathFactory) -> kr.data.ShardedLog:
    return kr.data.prepare(log, tmp_path_factory.mktemp("one") / "shards", shards=1, keep=["seen_after"])


@pytest.fixture(scope="module")
def three(log: kr.data.Log, tmp_path_factory: pytest.TempPathFactory) -> kr.data.ShardedLog:
    return kr.data.prepare(log, tmp_path_factory.mktemp("three") / "shards", shards=3, keep=["seen_after"])


def trained(log: Any, model: str = "cadet", epochs: int = 1, **settings: Any) -> tuple[Any, dict[str, Any], list[float]]:
    options, losses = {**TINY[model], **settings.pop("options", {})}, Losses(settings.pop("stop", None))
    try:
        made, history = kr.training.train(log, model, epochs=epochs, options=options, callbacks=[losses], verbose=False, **settings)
    except KeyboardInterrupt:
        return None, {}, losses.values
    return made, history, losses.values


def weights(model: Any) -> list[np.ndarray]:
    return [np.asarray(keras.ops.convert_to_numpy(weight)) for weight in model.weights]


@pytest.mark.parametrize("model", ["cadet", pytest.param("lirank", marks=pytest.mark.release)])
def test_one_shard_trains_as_the_frame(log: kr.data.Log, one: kr.data.ShardedLog, model: str) -> None:
    frame, told, losses = trained(log, model)
    shards, also, same = trained(one, model)
    assert losses == same
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(weights(frame), weights(shards), strict=True))
    for name in ("train_events", "packing_efficiency", "data_span", "left_out", "parameters"):
        assert told[name] == also[name], name


@pytest.mark.quickest
@pytest.mark.parametrize(
    "options",
    [
        {"ipw": "all", "age_half_life_days": 0.1, "position_half_life": "length"},
        {"ipw": "positives", "ipw_options": {"method": "ctr", "last": 3}, "ipw_clip": 1.5},
        {"batching": "bucketed"},
        {"number_bins": 4, "number_embedding": "piecewise_linear"},
        {"validation": "validation", "early_stopping": 1, "ema": 0.9},
        {"validation": 0.25, "monitor": "click_auc"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_do_what_they_do_on_a_frame(log: kr.data.Log, one: kr.data.ShardedLog, options: dict[str, Any]) -> None:
    source = kr.data.Log(log.events, one.schema, log.name)  # a share for validation takes no part in the frame's constants
    _, told, losses = trained(source, options=options)
    _, also, same = trained(one, options=options)
    assert same == pytest.approx(losses, rel=1e-5)
    assert told["propensities"].keys() == also["propensities"].keys()
    for task, found in told["propensities"].items():
        assert also["propensities"][task]["propensity"] == pytest.approx(found["propensity"], rel=1e-9)
        assert {name: also["propensities"][task][name] for name in ("clipped", "of")} == {name: found[name] for name in ("clipped", "of")}
        assert also["propensities"][task]["largest"] == pytest.approx(found["largest"], rel=1e-5)
    for name, values in told["epochs"].items():
        assert also["epochs"][name] == pytest.approx(values, rel=1e-5), name


def frame_of_a_shard(log: kr.data.Log, shards: kr.data.ShardedLog, number: int) -> kr.data.Sequences:
    """The training streams of the members of a shard, made of the frame."""
    own = log.events["member"].isin(log.events["member"].iloc[shards.sequences(number).rows])
    kept = (own & log.events["split"].isin(["train", "history"])).to_numpy()
    return kr.data.build_sequences(log.events[kept], shards.schema, (log.events["split"] == "train")[kept])


@pytest.mark.quickest
def test_several_shards_are_trained_in_the_order_of_the_seed(log: kr.data.Log, three: kr.data.ShardedLog) -> None:
    """The losses are those of a model that is trained on the frame's rows, packed shard by shard and read in the same order."""
    shards, _, losses = trained(three, epochs=2)
    keras.utils.set_random_seed(0)
    model = kr.models.CADET(three.schema, **{name: TINY["cadet"][name] for name in ("dim", "num_layers", "num_heads")})
    training = TrainingOptions(epochs=2, batch_size=2, row_length=64)
    parts = []
    for number in range(3):
        seed = 1_000_003 * number
        parts.append(training_data(model, frame_of_a_shard(log, three, number), training, seed)[0])
    compile_for(model, training, 2 * sum(map(len, parts)), three.longest_request)

    class InOrder(keras.utils.PyDataset):
        epoch = 0

        def __len__(self) -> int:
            return sum(map(len, parts))

        def __getitem__(self, batch: int) -> Any:
            for number in np.random.default_rng((0, self.epoch, 3)).permutation(3):
                if batch < len(parts[number]):
                    return parts[number][batch]
                batch -= len(parts[number])
            raise IndexError

        def on_epoch_end(self) -> None:
            if self.epoch == 0 and len(found.values) == len(self):
                self.epoch = 1
                for part in parts:
                    part.next_epoch()

    found = Losses()
    counter = Progress(None, None, {}, 0, sum(map(len, parts)))
    model.fit(InOrder(), epochs=2, shuffle=False, verbose=0, callbacks=[counter, found])
    assert losses == found.values
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(weights(shards), weights(model), strict=True))


@pytest.mark.quickest
def test_metrics_are_those_of_the_frame(log: kr.data.Log, one: kr.data.ShardedLog, three: kr.data.ShardedLog) -> None:
    model, _, _ = trained(one)
    for split in ("validation", "test"):
        whole = kr.training.evaluate(model, log, split, row_length=64)
        for shards in (one, three):
            found = kr.training.evaluate(model, shards, split, row_length=64)
            for task, values in whole.items():
                assert found[task] == pytest.approx(values, rel=1e-5, nan_ok=True), (split, task)


@pytest.mark.release
@pytest.mark.quickest
def test_requests_of_all_shards_have_one_shape(three: kr.data.ShardedLog) -> None:
    for model in ("lirank", "ligr"):
        ranker, _, losses = trained(three, model)
        assert np.isfinite(losses).all()
    facts, training = Facts.of(three, TRAINING, ranker), TrainingOptions(batch_size=2, row_length=32)
    weigher = Weigher(three, TRAINING, training, ranker.tasks, facts.learned[1])
    dataset = StreamedData(ranker, three, TRAINING, facts, training, 0, weigher).dataset
    shapes = {tuple((name, values.shape) for name, values in sorted(dataset[batch][0].items())) for batch in range(len(dataset))}
    assert len(shapes) == 1


@pytest.mark.release("tensorflow", "jax")
def test_a_run_that_is_stopped_in_a_shard_reaches_the_same_weights(three: kr.data.ShardedLog, tmp_path: Path) -> None:
    whole, _, losses = trained(three, epochs=2, out=tmp_path / "whole")
    assert len(losses) > 8
    trained(three, epochs=2, out=tmp_path / "run", options={"checkpoint_every": 2}, stop=len(losses) // 2 + 1)
    resumed, _, rest = trained(three, epochs=2, out=tmp_path / "run", options={"checkpoint_every": 2}, resume=True)
    assert 0 < len(rest) < len(losses)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(weights(whole), weights(resumed), strict=True))


@pytest.mark.quickest
def test_it_resumes_with_the_same_shards_alone(
    log: kr.data.Log, three: kr.data.ShardedLog, one: kr.data.ShardedLog, tmp_path: Path
) -> None:
    trained(three, out=tmp_path / "run", options={"checkpoint_every": 1}, stop=3)
    with pytest.raises(ValueError, match="made with other options or other data"):
        trained(one, out=tmp_path / "run", options={"checkpoint_every": 1}, resume=True)


@pytest.mark.quickest
def test_a_daily_step_on_shards(log: kr.data.Log, one: kr.data.ShardedLog, tmp_path: Path) -> None:
    trained(one, out=tmp_path / "run")
    times = log.events["at"][log.events["split"] == "train"]
    edge = int(times.quantile(0.8))
    new = ((log.events["split"] == "train") & (log.events["at"] >= edge)).to_numpy()
    frame, told = kr.training.warm_start(log, tmp_path / "run", new, verbose=False)
    shards, also = kr.training.warm_start(one, tmp_path / "run", edge, verbose=False)
    assert told["train_events"] == also["train_events"] == int(new.sum())
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(weights(frame), weights(shards), strict=True))
    _, told = kr.training.warm_start(one, tmp_path / "run", "validation", verbose=False)
    assert told["train_events"] == one.splits["validation"]
    with pytest.raises(ValueError, match="`new` must be the Unix time of the first new event"):
        kr.training.warm_start(one, tmp_path / "run", new, verbose=False)


@pytest.mark.quickest
def test_what_shards_cannot_have_is_refused(log: kr.data.Log, one: kr.data.ShardedLog, tmp_path: Path) -> None:
    refused = [
        ({"ipw": "all", "ipw_options": {"method": "random", "randomised": "unused"}}, "a sharded log has propensities by method 'em'"),
        ({"sampled_delay": True, "delay_column": "age"}, "column 'age' was not kept with the shards, which have"),
        ({"validation": "new_members"}, "has no rows with split 'new_members'"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            kr.training.train(one, "cadet", options={**TINY["cadet"], **options}, verbose=False)
    with pytest.raises(ValueError, match="`on_error` is that of `prepare`"):
        kr.training.train(one, "cadet", on_error="drop", verbose=False)
    model, _, _ = trained(one)
    other = kr.data.Log(log.events, log.schema.fit(log.events.head(100)), log.name)
    with pytest.raises(ValueError, match="must be encoded with the schema of the model"):
        kr.training.evaluate(model, kr.data.prepare(other, tmp_path / "other", shards=1))
    with pytest.raises(ValueError, match="has no rows with split 'new_members'"):
        kr.training.evaluate(model, one, "new_members")


@pytest.mark.quickest
def test_delays_are_drawn_from_those_of_the_training_rows(log: kr.data.Log, three: kr.data.ShardedLog) -> None:
    learned = (log.events["split"] == "train").to_numpy()
    found = logged_delays(three, TRAINING, "seen_after")
    assert found is not None
    wanted = np.sort(np.maximum(log.events["seen_after"].to_numpy()[learned], 1))
    assert np.array_equal(found[np.arange(len(found))], wanted)
    assert set(kr.data.sample_delays(found, 500, seed=1)) <= set(wanted)
    _, _, losses = trained(three, options={"sampled_delay": True, "delay_column": "seen_after"})
    assert np.isfinite(losses).all()


_WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None
import keras_ranking as kr
log = kr.data.ShardedLog(sys.argv[1])
model, history = kr.training.train(log, "cadet", epochs=1, options={"dim": 8, "num_layers": 1, "num_heads": 2}, verbose=False)
print(sorted(kr.training.evaluate(model, log)))
"""


@pytest.mark.release
@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="the other backends do not need TensorFlow")
def test_tensorflow_need_not_be_installed(three: kr.data.ShardedLog) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TENSORFLOW, str(three.folder)], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["['click', 'like']"], done.stderr[-2000:]
