"""Validation, early stopping, optimiser, schedule and first weights of `train`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import Log
from keras_ranking.training import Recipe, evaluate, presets, read_checkpoint, validation as validation_module, warm_start
from keras_ranking.training.schedules import OneCycle
from tests.training.crashes import CrashAfter
from tests.training.small import quick


@pytest.fixture(scope="module")
def log() -> Log:
    return kr.data.simulate(members=30, days=4, seed=0)


def differ(model: Any, other: Any) -> bool:
    return any(not np.array_equal(a, b) for a, b in zip(model.get_weights(), other.get_weights(), strict=True))


class Weights(keras.callbacks.Callback):
    """The weights before training and after each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[np.ndarray]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.seen.append([np.array(weight) for weight in self.model.get_weights()])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen.append([np.array(weight) for weight in self.model.get_weights()])


# -- validation ---------------------------------------------------------------------------------------------------------------


@pytest.mark.quickest
def test_validation_rows_are_the_last_ones_and_not_trained_on(log: Log) -> None:
    train_rows = (log.events["split"] == "train").to_numpy()
    times, requests = log.events["time"].to_numpy(), log.events["request_id"].to_numpy()
    last = train_rows & (times > times[train_rows].max() - 86_400)
    _, history = quick(log, options={"validation": "last_day"})
    assert history["validation"] == {"rows": "last_day", "events": int(last.sum())}
    assert history["train_events"] == int((train_rows & ~last).sum()) > 0 < last.sum()
    _, history = quick(log, options={"validation": 0.2})
    held, left = history["validation"]["events"], history["train_events"]
    assert held + left == train_rows.sum()
    ordered = np.unique(times[train_rows])
    edge = next(edge for edge in ordered if (train_rows & (times >= edge)).sum() == held)
    of_requests = {tuple(np.unique(requests[train_rows & (times >= edge)])), tuple(np.unique(requests[train_rows & (times < edge)]))}
    shares = sorted(len(names) for names in of_requests)
    assert shares[0] / sum(shares) == pytest.approx(0.2, abs=0.03)


@pytest.mark.quickest
def test_metrics_are_those_of_evaluate_and_the_weights_those_without(log: Log, tmp_path: Path) -> None:
    plain, _ = quick(log, epochs=2)
    model, history = quick(log, tmp_path, epochs=2, options={"validation": "validation"})
    assert not differ(plain, model)
    found = evaluate(tmp_path, log, "validation")
    for metric in ("auc", "impression_auc", "log_loss", "normalized_entropy"):
        for task in ("click", "like"):
            assert history["epochs"][f"val_{task}_{metric}"][-1] == pytest.approx(found[task][metric], rel=1e-5)
        assert history["epochs"][f"val_{metric}"][-1] == pytest.approx(np.mean([found[task][metric] for task in found]), rel=1e-5)
    assert len(history["epochs"]["val_log_loss"]) == 2 and history["best"]["saved"] is False


@pytest.mark.quickest
def test_labels_of_validation_rows_move_no_weight(log: Log) -> None:
    def changed(rows: np.ndarray) -> Log:
        events = log.events.copy()
        events.loc[rows, "click"] = 1 - events.loc[rows, "click"]
        return Log(events, log.schema, log.name, preset=log.preset)

    train_rows = (log.events["split"] == "train").to_numpy()
    last = train_rows & (log.events["time"].to_numpy() > log.events["time"].to_numpy()[train_rows].max() - 86_400)
    options = {"validation": "last_day"}
    model, history = quick(log, options=options)
    other, moved = quick(changed(last), options=options)
    assert not differ(model, other) and history["epochs"]["val_click_auc"] != moved["epochs"]["val_click_auc"]
    # Control: the labels of training rows move them.
    assert differ(model, quick(changed(train_rows & ~last), options=options)[0])


# -- early stopping -----------------------------------------------------------------------------------------------------------


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """The validation finds these values, one after the other."""
    values = iter(losses)

    def found(model: Any, rows: Any, plan: Any) -> dict[str, dict[str, float]]:
        loss = next(values)
        return {
            task: {"auc": 1 - loss, "impression_auc": 1 - loss, "log_loss": loss, "normalized_entropy": loss} for task in ("click", "like")
        }

    monkeypatch.setattr(validation_module, "metrics_of", found)


@pytest.mark.release("jax", "tensorflow")
@pytest.mark.parametrize("monitor", ["log_loss", "click_grouped_auc"])
def test_training_stops_and_the_best_epoch_is_saved(monitor: str, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.5, 0.4, 0.45, 0.42, 0.1])
    watch = Weights()
    options = {"validation": "validation", "early_stopping": 2, "monitor": monitor}
    model, history = quick(log, tmp_path, epochs=5, options=options, callbacks=[watch])
    assert len(history["epochs"]["loss"]) == 4
    name = "val_log_loss" if monitor == "log_loss" else "val_click_impression_auc"
    value = 0.4 if monitor == "log_loss" else 0.6
    assert history["best"] == {"epoch": 2, "monitor": name, "value": pytest.approx(value), "saved": True}
    loaded = kr.models.load(tmp_path)
    for mine, saved, best, last in zip(model.get_weights(), loaded.get_weights(), watch.seen[2], watch.seen[4], strict=True):
        np.testing.assert_array_equal(mine, best)
        np.testing.assert_array_equal(saved, best)
        assert last.shape == best.shape
    assert any((a != b).any() for a, b in zip(watch.seen[2], watch.seen[4], strict=True))  # control
    assert int(model.optimizer.iterations) * 2 == read_checkpoint(tmp_path).about["progress"]["step"]  # its state is that of epoch 2


@pytest.mark.quickest
def test_best_without_stopping_and_stopping_without_best(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    for choice in (True, False):
        scripted(monkeypatch, [0.4, 0.5, 0.3, 0.6])
        watch = Weights()
        model, history = quick(log, epochs=4, options={"validation": "validation", "best": choice}, callbacks=[watch])
        assert history["best"]["epoch"] == 3 and history["best"]["saved"] is choice
        for mine, wanted in zip(model.get_weights(), watch.seen[3 if choice else 4], strict=True):
            np.testing.assert_array_equal(mine, wanted)


# "everything" has what a resumed run must carry: the best epoch so far, the count of epochs without a better one, the rate.
RECIPES: dict[str, dict[str, Any]] = {
    "everything": {
        "validation": "last_day",
        "early_stopping": 2,
        "monitor": "auc",
        "metrics": ["NormalizedEntropy"],
        "schedule": "onecycle",
    },
    "constant": {"validation": 0.2, "best": True, "optimizer": "adam", "schedule": "constant", "learning_rate": 0.05},
}


@pytest.mark.parametrize(
    "kind", [pytest.param("everything", marks=pytest.mark.release("tensorflow")), pytest.param("constant", marks=pytest.mark.quickest)]
)
def test_a_stopped_run_reaches_the_same_weights(kind: str, log: Log, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 3, "options": {"dropout": 0.2, "checkpoint_every": 2, **RECIPES[kind]}}
    model, history = quick(log, tmp_path / "whole", **settings)
    steps = read_checkpoint(tmp_path / "whole").about["progress"]["step"] // len(history["epochs"]["loss"])
    assert steps > 3
    # In the middle of the third epoch, or at the end of the second.
    folder, number = tmp_path / "broken", 2 * steps + (2 if kind == "everything" else 0)
    with pytest.raises(RuntimeError, match="crash"):
        quick(log, folder, callbacks=[CrashAfter(number + 1)], **settings)
    if kind == "constant":
        with pytest.raises(ValueError, match="recipe.best: True in the checkpoint, None here"):
            quick(log, folder, resume=True, **{**settings, "options": {**settings["options"], "best": None}})
    resumed, again = quick(log, folder, resume=True, **settings)
    assert not differ(model, resumed)
    assert again["best"] == history["best"] and again["epochs"].keys() == history["epochs"].keys()
    for name in ("val_log_loss", "val_click_auc"):
        assert again["epochs"][name] == history["epochs"][name]
    for one, other in zip(model.optimizer.variables, resumed.optimizer.variables, strict=True):
        np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(v.value) for v in (one, other)))


@pytest.mark.quickest
def test_a_run_that_crashed_after_its_last_epoch_trains_no_further(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crash(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if self.model.stop_training:
                raise RuntimeError("crash")

    settings = {"epochs": 5, "options": {"validation": "validation", "early_stopping": 1, "checkpoint_every": 100}}
    scripted(monkeypatch, [0.4, 0.5])
    with pytest.raises(RuntimeError, match="crash"):
        quick(log, tmp_path, callbacks=[Crash()], **settings)
    _, history = quick(log, tmp_path, resume=True, **settings)
    assert len(history["epochs"]["loss"]) == 2 and history["best"]["epoch"] == 1


# -- optimiser, schedule, first weights ---------------------------------------------------------------------------------------


@pytest.mark.quickest
@pytest.mark.parametrize(("steps", "share"), [(10, 0.3), (100, 0.1), (7, 0.0)])
def test_one_cycle_is_that_of_torch(steps: int, share: float) -> None:
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.zeros(1))
    peer = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD([weight]), 0.4, total_steps=steps, pct_start=max(share, 2 / steps), cycle_momentum=False
    )
    ours = OneCycle(0.4, steps, share)
    for step in range(steps):
        assert float(ours(step)) == pytest.approx(peer.get_last_lr()[0], rel=1e-5, abs=0.4 * 2**-23)
        if step < steps - 1:
            peer.optimizer.step()
            peer.step()
    assert OneCycle.from_config(ours.get_config()).get_config() == ours.get_config()


@pytest.mark.release("jax", "tensorflow")
def test_a_callback_sets_the_rate_of_a_constant_schedule(log: Log) -> None:
    class Rates(keras.callbacks.Callback):
        seen: list[float] = []

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            Rates.seen.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))

    options = {"schedule": "constant", "learning_rate": 0.01}
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate if epoch == 0 else rate / 2)
    quick(log, epochs=3, options=options, callbacks=[halve, Rates()])
    assert Rates.seen == pytest.approx([0.01, 0.005, 0.0025])
    for schedule in ({}, {"schedule": "onecycle"}, {"schedule": keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)}):
        with pytest.raises(ValueError, match=r"LearningRateScheduler sets the learning rate, which .* Give schedule='constant'"):
            quick(log, options=schedule, callbacks=[halve])


@pytest.mark.quickest
def test_optimisers_by_name_and_as_objects(log: Log, tmp_path: Path) -> None:
    model, history = quick(log, options={"optimizer": "SGD", "schedule": "constant"})
    assert type(model.optimizer).__name__ == "SGD" and history["recipe"] == {"optimizer": "SGD", "schedule": "constant"}
    given = keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.01, 3, 0.5), beta_1=0.8)
    model, history = quick(log, tmp_path, options={"optimizer": given})
    assert model.optimizer is not given and model.optimizer.beta_1 == 0.8
    assert history["recipe"]["optimizer"]["class_name"] == "Adam"
    steps = read_checkpoint(tmp_path).about["progress"]["step"]
    new = (log.events["split"] == "validation").to_numpy()
    warm, _ = warm_start(log, tmp_path, new, verbose=False)
    assert float(warm.optimizer.learning_rate) == pytest.approx(0.01 * 0.5 ** (steps / 3)) and warm.optimizer.beta_1 == 0.8
    schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 3, 0.5)
    model, _ = quick(log, options={"schedule": schedule})
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01 * 0.5 ** (steps / 3))


@pytest.mark.quickest
def test_training_starts_from_the_weights_of_a_model(log: Log, tmp_path: Path) -> None:
    model, _ = quick(log, tmp_path)
    watch = Weights()
    quick(log, seed=5, options={"init_from": tmp_path}, callbacks=[watch])
    for first, stored in zip(watch.seen[0], model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, stored)
    with pytest.raises(
        ValueError, match=r"`init_from` must be a model with the same arguments. Received: .*`hidden` is \[16\] here and \[8\]"
    ):
        quick(log, options={"init_from": tmp_path, "hidden": (16,)})


@pytest.mark.quickest
def test_a_preset_of_the_log_may_hold_a_recipe(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, ("lirank", "simulated"), {"ema": 0.9, "metrics": "NormalizedEntropy", "id_dim": 3})
    _, history = quick(log)
    assert history["recipe"] == {"ema": 0.9, "metrics": ["NormalizedEntropy"]} and history["arguments"]["id_dim"] == 4
    _, history = quick(log, options={"ema": 0.8})  # what is given has precedence
    assert history["recipe"]["ema"] == 0.8


@pytest.mark.quickest
@pytest.mark.parametrize("model", ["LiRank", "LIRANK", kr.models.LiRank])
def test_models_by_name_in_any_case_and_by_builder(model: Any, log: Log) -> None:
    _, history = quick(log, model=model)
    assert history["model"] == "lirank"
    for wrong in ("ligrr", kr.models.load):
        with pytest.raises(ValueError, match="unknown model .* There is: "):
            quick(log, model=wrong)


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 1.5}, "`validation` must be a share above 0 and below 1"),
        ({"validation": "monday"}, "has no rows with split 'monday'"),
        ({"validation": "train"}, "`validation` must be a split that is not trained on"),
        ({"early_stopping": 2}, "`early_stopping` needs `validation`"),
        ({"best": False}, "`best` needs `validation`"),
        ({"monitor": "auc"}, "`monitor` needs `validation`"),
        ({"validation": 0.1, "early_stopping": 0}, "`early_stopping` must be a positive number of epochs"),
        ({"validation": 0.2, "monitor": "share_auc"}, "`monitor` must be one of .*, for one task such as 'click_log_loss'"),
        ({"schedule": "linear"}, r"`schedule` must be one of \('cosine', 'constant', 'onecycle'\), or a schedule of Keras"),
        ({"schedule": "constant", "warmup": 0.2}, "`warmup` has no effect with schedule='constant'"),
        ({"optimizer": "adamm"}, "`optimizer` must be a name that Keras has. Received: optimizer='adamm'"),
        ({"optimizer": keras.optimizers.Adam(), "learning_rate": 0.1}, "`learning_rate` has no effect on an optimiser of Keras"),
        ({"metrics": ["Nothing"]}, "`metrics` must be names of metrics of keras_ranking.metrics or keras.metrics. Received: 'Nothing'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str, log: Log) -> None:
    with pytest.raises(ValueError, match=message):
        quick(log, options=options)


@pytest.mark.quickest
def test_a_callback_may_monitor_what_the_validation_computes(log: Log) -> None:
    stop = keras.callbacks.EarlyStopping("val_click_auc", mode="max", patience=3)
    quick(log, options={"validation": 0.2}, callbacks=[stop])
    with pytest.raises(ValueError, match=r"monitors 'val_loss', which is not computed: the validation computes \['val_auc', "):
        quick(log, options={"validation": 0.2}, callbacks=[keras.callbacks.EarlyStopping("val_loss")])


@pytest.mark.quickest
def test_a_metric_that_the_rows_do_not_define_is_an_error(log: Log) -> None:
    events = log.events.copy()
    events.loc[events["split"] == "validation", ["click", "like"]] = 0
    with pytest.raises(ValueError, match=r"`monitor` must be a metric that the validation rows define, one of .*Received: monitor='auc'"):
        quick(Log(events, log.schema, "zeros"), options={"validation": "validation", "monitor": "auc"})


# -- Ctrl-C -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c_counts() -> Iterator[None]:
    """As in a terminal: a shell starts what it runs in the background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Press(keras.callbacks.Callback):
    """Ctrl-C in a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.quickest
@pytest.mark.usefixtures("ctrl_c_counts")
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(log: Log, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, history = quick(log, tmp_path / "whole", epochs=2)
    steps = read_checkpoint(tmp_path / "whole").about["progress"]["step"] // 2
    before = signal.getsignal(signal.SIGINT)
    for step in (2, steps):  # the last step of an epoch ends with the epoch
        folder = tmp_path / f"stopped{step}"
        with pytest.raises(KeyboardInterrupt):
            quick(log, folder, epochs=2, callbacks=[Press(step)])
        said = capsys.readouterr().err
        assert f"after {step} steps; to go on: `train(..., out={str(folder)!r}, resume=True)`" in said and "--resume" in said
        assert read_checkpoint(folder).about["progress"]["step"] == step
        resumed, again = quick(log, folder, epochs=2, resume=True)
        assert not differ(model, resumed) and again["epochs"]["loss"] == pytest.approx(history["epochs"]["loss"], rel=1e-6)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.quickest
@pytest.mark.usefixtures("ctrl_c_counts")
def test_a_second_ctrl_c_stops_at_once(log: Log, tmp_path: Path) -> None:
    class Twice(Press):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            signal.raise_signal(signal.SIGINT)
            super().on_train_batch_begin(batch)

    with pytest.raises(KeyboardInterrupt):
        quick(log, tmp_path / "run", callbacks=[Twice(1)])
    assert not (tmp_path / "run").exists()


@pytest.mark.quickest
def test_a_recipe_by_itself() -> None:
    assert Recipe().plain() == {} and Recipe(validation=0.1, early_stopping=3).keeps_best
    assert Recipe(validation="last_day", metrics="AUC").plain() == {"validation": "last_day", "metrics": ["AUC"]}
