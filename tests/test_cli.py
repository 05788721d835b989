"""The command line: help, usage errors, exit codes, one-line errors, and the whole road through a shell."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.cli import build_parser, main
from keras_ranking.commands.common import read_rows

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("simulate", "train", "evaluate", "export", "serve", "score")
FIGURES = {
    *("auc", "impression_auc", "ndcg_at_10", "mrr"),
    *("log_loss", "normalized_entropy", "calibration_error", "observed_over_expected"),
}
SMALL = ("--members", "60", "--days", "4")


def run(*arguments: str, backend: str = "torch", **settings: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, as a shell runs it. On torch, which starts and trains such small models fastest."""
    command = [sys.executable, "-m", "keras_ranking.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": backend}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500, **settings)


def usage_error(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(str(stopped.value.code))


# -- help and usage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_enough_to_use_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error(command, "--help") == 0
    text = capsys.readouterr().out
    examples = re.findall(rf"^  (keras-ranking {command} .*)$", text, flags=re.MULTILINE)
    assert examples, "a help without an example"
    for example in examples:  # examples that the parser itself takes
        arguments = build_parser().parse_args(example.split()[1:])
        assert arguments.command == command
    options = build_parser()._subparsers._group_actions[0].choices[command]._actions
    assert [option.dest for option in options if not option.help] == []


def test_help_of_the_whole_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error("--help") == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^    {command} +\w", text, flags=re.MULTILINE) for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error("--version") == 0
    assert capsys.readouterr().out == f"keras-ranking {kr.__version__}\n"


def test_help_loads_no_keras() -> None:
    program = "import sys, keras_ranking.cli as cli; cli.build_parser(); print({'keras', 'tensorflow', 'grpc'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fit",),
        ("train", "--data", "simulated"),
        ("train", "--out", "x"),
        ("train", "--data", "simulated", "--out", "x", "--epochs", "0"),
        ("train", "--data", "simulated", "--out", "x", "--seed", "-1"),
        ("train", "--data", "simulated", "--out", "x", "--backend", "mxnet"),
        ("train", "--data", "simulated", "--out", "x", "--set", "epochs"),
        ("serve", "x", "--rest-port", "70000"),
        ("score", "request.json"),
        ("score", "request.json", "--model", "x", "--server", "y"),
        ("simulate", "--out", "x.csv", "--members", "many"),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("3", 3), ("0.5", 0.5), ("true", True), ("True", True), ("null", None)],
        *[("[1,4]", [1, 4]), ("(1,4)", (1, 4)), ("gelu", "gelu"), ("a=b", "a=b")],
    ],
)
def test_settings_keep_their_type(text: str, value: Any) -> None:
    arguments = build_parser().parse_args(["train", "--data", "simulated", "--out", "x", "--set", f"name={text}"])
    assert arguments.set == [("name", value)]
    assert type(arguments.set[0][1]) is type(value)


# -- bad input: exit code 2, one line ----------------------------------------------------------------------------------------


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on stderr, which must be the only one that names the error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("keras-ranking ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("simulate", "--out", "log.txt"), r"`--out` must end in .parquet, .csv or .csv.gz. Received: log.txt"),
        (("simulate", "--out", "{tmp}/log.csv", "--set", "drift=2"), r"`drift` must be between 0 and 1. Received: drift=2"),
        (("simulate", "--out", "{tmp}/log.csv", "--set", "drfit=1"), r"unexpected keyword argument 'drfit'"),
        (("score", "{tmp}/none.json", "--server", "127.0.0.1:1"), r"none.json"),
        (("score", "{tmp}/text.json", "--server", "127.0.0.1:1"), r"text.json is not JSON"),
        (("score", "{tmp}/list.json", "--server", "127.0.0.1:1"), r"a request must have the keys time, candidates"),
        (("score", "{tmp}/half.json", "--server", "127.0.0.1:1"), r"a request must have the keys .* Received: \['items', 'time'\]"),
        (("score", "--server", "127.0.0.1:1"), r"give a REQUEST file, or --candidates FILE and --time SECONDS"),
        (("score", "{tmp}/good.json", "--time", "5", "--server", "127.0.0.1:1"), r"not both"),
        (("score", "{tmp}/good.json", "--server", "127.0.0.1:1"), r"`--server` needs --schema FILE"),
        (("score", "{tmp}/good.json", "--server", "127.0.0.1:1", "--schema", "{tmp}/bad_schema.json"), r"tasks: .*required"),
        (("score", "--candidates", "{tmp}/x.txt", "--time", "5", "--server", "127.0.0.1:1"), r"must come from a .parquet, .csv"),
        (("score", "--candidates", "{tmp}/none.csv", "--time", "5", "--server", "127.0.0.1:1"), r"no file .*none.csv"),
    ],
)
def test_bad_input_is_2_in_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "text.json", "{")
    write(tmp_path / "list.json", "[1, 2]")
    write(tmp_path / "half.json", '{"time": 5, "items": []}')
    write(tmp_path / "good.json", '{"time": 5, "candidates": [{"item_id": 1}]}')
    write(tmp_path / "bad_schema.json", '{"member": "m", "time": "t", "request": "r", "features": []}')
    assert main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments]) == 2
    assert re.search(message, one_line(capsys))


@pytest.mark.parametrize(
    ("source", "extra", "message"),
    [
        ("simulate", (), r"`source` must be one of simulated, ebnerd:FOLDER"),
        ("ebnerd:{tmp}/nothing", (), r"nothing"),
        ("parquet:{tmp}/none.parquet", ("--schema", "{tmp}/none.json"), r"none"),
        ("parquet:{tmp}/none.parquet", (), r"`schema` must be given with source 'parquet:FILE'"),
        ("simulated", ("--schema", "{tmp}/none.json"), r"none.json"),
    ],
)
def test_bad_source_is_2(source: str, extra: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("train", "--data", source, "--out", "{tmp}/out", *extra)
    assert main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments]) == 2
    assert re.search(message, one_line(capsys))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_no_model_there_is_2(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = {"evaluate": ("--data", "simulated"), "export": ("--out", str(tmp_path / "served"))}[command]
    assert main([command, str(tmp_path), *rest]) == 2
    assert "no model at" in one_line(capsys)


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must end in"):
        main(["simulate", "--out", str(tmp_path / "log.txt"), "--debug"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, the disk that is always full, is Linux's")
def test_a_failure_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.csv").symlink_to("/dev/full")
    assert main(["simulate", *SMALL, "--out", str(tmp_path / "log.csv")]) == 1
    assert "No space left on device" in one_line(capsys)


# -- simulate ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.csv.gz"])
def test_simulate_writes_log_and_schema(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *SMALL, "--seed", "3", "--set", "items_per_day=40", "--out", str(tmp_path / "new" / name)]) == 0
    path = tmp_path / "new" / name
    events = pd.read_parquet(path) if name.endswith("parquet") else pd.read_csv(path)
    schema = kr.Schema.load(tmp_path / "new" / "log.schema.json")
    assert set(schema.columns) | {"split"} <= set(events.columns)
    assert f"{len(events):,} impressions of 60 members" in capsys.readouterr().out
    from keras_ranking.data import simulate

    again = simulate(members=60, days=4, seed=3, items_per_day=40).events
    np.testing.assert_array_equal(events["item_id"], again["item_id"])
    assert not np.array_equal(events["item_id"][:100], simulate(members=60, days=4, seed=4, items_per_day=40).events["item_id"][:100])


# -- the whole road ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small log, and a CADET trained on it for a moment."""
    folder = tmp_path_factory.mktemp("road")
    done = run("simulate", *SMALL, "--out", "log.parquet", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = run("train", *road(), "--out", "cadet", "--epochs", "1", "--set", "row_length=128", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def road() -> tuple[str, ...]:
    return ("--data", "parquet:log.parquet", "--schema", "log.schema.json")


@pytest.fixture(scope="module")
def request_file(trained: Path) -> dict[str, Any]:
    """One validation request with the member's events before it, as `score` takes it."""
    events = pd.read_parquet(trained / "log.parquet")
    shown = events[events["split"] == "validation"]
    first = shown[shown["request_id"] == shown["request_id"].iloc[-1]]
    past = events[(events["member_id"] == first["member_id"].iloc[0]) & (events["time"] < first["time"].iloc[0])]
    drop = ["click", "like", "dwell_seconds", "position"]
    content = {
        "time": int(first["time"].iloc[0]),
        "history": json.loads(past.to_json(orient="records")),
        "candidates": json.loads(first.drop(columns=drop).to_json(orient="records")),
    }
    (trained / "request.json").write_text(json.dumps(content))
    past.to_parquet(trained / "history.parquet")
    first.drop(columns=drop).to_csv(trained / "candidates.csv", index=False)
    return content


@pytest.mark.slow
def test_train_leaves_three_files(trained: Path) -> None:
    assert {"model.keras", "schema.json", "history.json"} <= {path.name for path in (trained / "cadet").iterdir()}
    history = json.loads((trained / "cadet" / "history.json").read_text())
    assert history["seed"] == 0
    assert all(np.isfinite(values).all() for values in history["epochs"].values())


@pytest.mark.slow
def test_evaluate_writes_every_figure(trained: Path) -> None:
    arguments = ("evaluate", "cadet", *road(), "--split", "validation", "--json", "figures/validation.json")
    done = run(*arguments, backend="tensorflow", cwd=trained)
    assert done.returncode == 0, done.stderr
    figures = json.loads((trained / "figures" / "validation.json").read_text())
    assert set(figures) == {"click", "like"}
    assert all(set(figures[task]) == FIGURES for task in figures)
    assert 0.3 < figures["click"]["auc"] < 1
    for name, value in figures["click"].items():
        assert re.search(rf"^{name} +{value:.4f}", done.stdout, flags=re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert "oneDNN" not in done.stderr, "TensorFlow's chatter is held back"


@pytest.mark.slow
def test_evaluate_of_an_unknown_split_is_2(trained: Path) -> None:
    done = run("evaluate", "cadet", *road(), "--split", "monday", cwd=trained)
    assert done.returncode == 2
    assert "has no rows with split 'monday'" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_same_seed_same_model(trained: Path) -> None:
    for name, seed in (("again", "0"), ("other", "1")):
        done = run("train", *road(), "--out", name, "--epochs", "1", "--set", "row_length=128", "--seed", seed, "--quiet", cwd=trained)
        assert done.returncode == 0, done.stderr
    losses = {name: json.loads((trained / name / "history.json").read_text())["epochs"]["loss"] for name in ("cadet", "again", "other")}
    assert losses["cadet"] == losses["again"]
    assert losses["cadet"] != losses["other"]


@pytest.mark.slow
def test_score_in_this_process(trained: Path, request_file: dict[str, Any]) -> None:
    done = run("score", "request.json", "--model", "cadet", "--json", cwd=trained)
    assert done.returncode == 0, done.stderr
    ranked = json.loads(done.stdout)
    assert [row["rank"] for row in ranked] == list(range(1, len(request_file["candidates"]) + 1))
    assert [row["item_id"] for row in ranked] == [request_file["candidates"][row["candidate"]]["item_id"] for row in ranked]
    clicks = [row["click"] for row in ranked]
    assert clicks == sorted(clicks, reverse=True)
    tables = ("--candidates", "candidates.csv", "--history", "history.parquet", "--time", str(request_file["time"]))
    done = run("score", *tables, "--model", "cadet", "--json", cwd=trained)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)  # from another process, whose buffers may be aligned otherwise: equal to float rounding
    assert [row["candidate"] for row in again] == [row["candidate"] for row in ranked]
    for task in ("click", "like"):
        assert [row[task] for row in again] == pytest.approx([row[task] for row in ranked], rel=1e-6)
    done = run("score", "request.json", "--model", "cadet", "--task", "like", "--top", "3", cwd=trained)
    assert len(done.stdout.splitlines()) == 2 + 3


@pytest.mark.slow
def test_score_of_a_bad_request_is_2(trained: Path, request_file: dict[str, Any]) -> None:
    candidates = [{name: value for name, value in row.items() if name != "age_hours"} for row in request_file["candidates"]]
    (trained / "bad.json").write_text(json.dumps({**request_file, "candidates": candidates}))
    done = run("score", "bad.json", "--model", "cadet", cwd=trained)
    assert done.returncode == 2
    assert "age_hours" in done.stderr.splitlines()[-1]
    done = run("score", "request.json", "--model", "cadet", "--task", "clik", cwd=trained)
    assert done.returncode == 2
    assert "unknown task 'clik'" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_export_serve_score_stop(trained: Path, request_file: dict[str, Any]) -> None:
    done = run("export", "cadet", "--out", "served/cadet", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert (trained / "served" / "cadet" / "1" / "saved_model.pb").is_file()
    local = json.loads(run("score", "request.json", "--model", "cadet", "--json", cwd=trained).stdout)
    command = [sys.executable, "-m", "keras_ranking.cli", "serve", "served/cadet", "--rest-port", "0", "--grpc-port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=trained, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            lines = [server.stdout.readline() for _ in range(3)]
            assert "serving cadet version 1" in lines[0], server.stderr.read()
            rest = re.search(r"(http://[\d.:]+)/v1/models/cadet:predict", lines[1])[1]
            grpc = lines[2].split()[-1]
            for address in (grpc, rest):
                done = run("score", "request.json", "--server", address, "--schema", "cadet/schema.json", "--json", cwd=trained)
                assert done.returncode == 0, done.stderr
                remote = json.loads(done.stdout)
                assert [row["candidate"] for row in remote] == [row["candidate"] for row in local]
                np.testing.assert_allclose([row["click"] for row in remote], [row["click"] for row in local], atol=1e-5, rtol=0)
            wrong = run("score", "request.json", "--server", grpc, "--name", "cader", "--schema", "cadet/schema.json", cwd=trained)
            assert wrong.returncode == 2
            assert "cader" in wrong.stderr.splitlines()[-1]
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 0
    gone = run("score", "request.json", "--server", grpc, "--schema", "cadet/schema.json", cwd=trained)
    assert gone.returncode == 1
    assert "Traceback" not in gone.stderr


@pytest.mark.slow
def test_serve_without_a_version_is_2(trained: Path) -> None:
    (trained / "empty").mkdir(exist_ok=True)
    for folder in ("empty", "nowhere"):
        done = run("serve", folder, "--rest-port", "0", "--grpc-port", "0", cwd=trained)
        assert done.returncode == 2
        assert folder in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


# -- going on with a training --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--new-events", "2026-01-09", "--out", "{tmp}/out"), r"`--new-events` needs `--resume DIR`"),
        (("--resume", "{tmp}", "--new-events", "2026-01-09"), r"`--new-events` needs `--out`"),
        (("--resume", "{tmp}", "--seed", "3"), r"`--seed` is that of the training in --resume. Received: 3"),
        (("--resume", "{tmp}", "--out", "{tmp}/out"), r"`--out` is that of the training in --resume"),
        (("--resume", "{tmp}", "--set", "dim=8"), r"`--set` is that of the training in --resume. Received: dim"),
        (("--resume", "{tmp}"), r"no checkpoint.npz in "),
    ],
)
def test_going_on_wrongly_is_2(arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert main(["train", "--data", "simulated", *given]) == 2
    assert re.search(message, one_line(capsys))


@pytest.mark.quickest
def test_in_a_log_without_splits_all_that_is_older_is_history(tmp_path: Path) -> None:
    """As in serving: a daily step leaves no day out between what was trained on and what is new."""
    from keras_ranking.commands.learning import _with_new_events

    log = kr.data.simulate(members=20, days=5, seed=1)
    path, schema = tmp_path / "log.parquet", tmp_path / "schema.json"
    log.events.drop(columns="split").to_parquet(path)
    log.schema.save(schema)
    edge = int(np.quantile(log.events["time"], 0.95))
    day = pd.Timestamp(edge, unit="s").isoformat()
    found, new = _with_new_events(Namespace(data=f"parquet:{path}", schema=str(schema), new_events=day), 0)
    assert (found.events["split"] == "train").all()
    np.testing.assert_array_equal(new, log.events["time"].to_numpy() >= edge)
    assert 0 < new.sum() < 0.2 * len(new), "the new rows are among those that a cold start would keep back"


@pytest.mark.slow
@pytest.mark.quickest
def test_the_daily_step_in_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished training goes on with the rows from a day on, and with the rows of a file; both read the whole log."""
    log = kr.data.simulate(members=40, days=5, seed=1)
    old = log.events["split"] == "train"
    paths = {name: tmp_path / f"{name}.parquet" for name in ("all", "old", "new")}
    log.events.assign(split=log.events["split"].replace("validation", "train")).to_parquet(paths["all"])
    log.events[old].to_parquet(paths["old"])
    log.events[log.events["split"] == "validation"].drop(columns="split").to_parquet(paths["new"])
    schema = tmp_path / "log.schema.json"
    log.schema.save(schema)
    cold = tmp_path / "cold"
    small = [f"--set={name}={value}" for name, value in (("dim", 8), ("num_layers", 1), ("num_heads", 2), ("row_length", 64))]
    source = ["--data", f"parquet:{paths['old']}", "--schema", str(schema), "--quiet"]
    assert main(["train", *source, "--out", str(cold), "--epochs", "1", *small]) == 0
    day = pd.Timestamp(int(log.events["time"][log.events["split"] == "validation"].min()), unit="s").isoformat()
    everything = ["--data", f"parquet:{paths['all']}", "--schema", str(schema), "--quiet", "--resume", str(cold)]
    assert main(["train", *everything, "--new-events", day, "--out", str(tmp_path / "by_day")]) == 0
    more = ["--resume", str(cold), "--new-events", f"parquet:{paths['new']}"]
    assert main(["train", *source, *more, "--out", str(tmp_path / "by_file")]) == 0
    new = int((log.events["split"] == "validation").sum())
    assert capsys.readouterr().err.count(f"{new:,} new events") == 2
    one, other = (kr.models.load(tmp_path / name).get_weights() for name in ("by_day", "by_file"))
    before = kr.models.load(cold).get_weights()
    for a, b in zip(one, other, strict=True):  # the same rows either way
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(one, before, strict=True))
    assert json.loads((tmp_path / "by_day" / "history.json").read_text())["train_events"] == new
    assert main(["train", *source, "--resume", str(cold)]) == 2
    assert "is finished. To learn from newer events, give --new-events and --out" in one_line(capsys)
    assert main(["train", *everything, "--new-events", "1st of May", "--out", str(tmp_path / "x")]) == 2


@pytest.mark.quickest
def test_score_knows_which_tasks_a_model_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not the schema's first one, and candidates without a column that the model does not read; texts of a file stay texts."""
    log = kr.data.simulate(members=10, days=2, seed=0)
    schema = log.schema.fit(log.events)
    model = kr.models.CADET(schema, dim=8, num_layers=1, num_heads=2, tasks=["like"], token_features=["topic"], late_features=["device"])
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run" / "model.keras")
    schema.save(tmp_path / "run" / "schema.json")
    rows = log.events[log.events["request_id"] == log.events["request_id"].iloc[-1]]
    rows[["topic", "device"]].to_json(tmp_path / "candidates.json", orient="records")
    asked = ["--model", str(tmp_path / "run"), "--candidates", str(tmp_path / "candidates.json"), "--time", str(int(rows["time"].iloc[0]))]
    assert main(["score", *asked, "--json"]) == 0
    ranked = json.loads(capsys.readouterr().out)
    assert len(ranked) == len(rows) and set(ranked[0]) == {"rank", "candidate", "like"}
    assert main(["score", *asked, "--task", "click"]) == 2
    assert "`--task` must be one that the model scores, ['like']. Received: click" in one_line(capsys)
    (tmp_path / "ids.json").write_text('[{"item_id": "007", "published_at": 1700000000}]')
    found = read_rows(str(tmp_path / "ids.json"))
    assert found["item_id"].tolist() == ["007"] and found["published_at"].tolist() == [1_700_000_000]
