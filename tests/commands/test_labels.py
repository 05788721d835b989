"""`promote` and `rollback`, alone and with a server that reads the config; labels and versions of a server for `score` and `skew`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keras_ranking.cli import main
from keras_ranking.commands import labels as command
from keras_ranking.serving.exporting import server_configs
from tests.commands.shell import one_line, usage_error
from tests.serving.exporting.model_server import ModelServer, publish

pytest.importorskip("tensorflow_serving")
pytestmark = pytest.mark.one_backend


class Calls:
    """A client of the model of a server; each call takes as long as one poll."""

    def __init__(self, server: ModelServer) -> None:
        self.server, self.accepted = server, []

    def versions(self) -> dict[int, tuple[str, str]]:
        self.server.poll_folder()
        self.accepted.append(self.server.reload())
        found = {int(path.name) for path in self.server.folder.iterdir() if path.name.isdigit()}
        broken = {v: ("END", "no such op") for v in found if not self.server._loads(v)}
        return {v: ("AVAILABLE", "") if v in self.server.available else broken.get(v, ("LOADING", "")) for v in found}

    def version_of(self, label: str) -> int | None:
        self.accepted.append(self.server.reload())
        return self.server.labels.get(label)

    def close(self) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "ranker"
    publish(made, 1)
    publish(made, 2)
    return made


def attach(monkeypatch: pytest.MonkeyPatch, server: ModelServer) -> Calls:
    calls = Calls(server)
    monkeypatch.setattr(command, "client_of", lambda *_, **__: calls)
    monkeypatch.setattr(command, "_POLL_SECONDS", 0.001)
    return calls


def test_without_a_server(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["promote", str(folder)]) == 0
    assert capsys.readouterr().out == "stable: version 2, was 1\n"
    assert server_configs.read_labels(folder).now == {"stable": 2, "canary": 2}
    publish(folder, 3)
    assert main(["rollback", str(folder)]) == 0
    assert capsys.readouterr().out == "stable: version 1, was 2\n"
    assert main(["rollback", str(folder)]) == 0  # and forward again
    assert server_configs.read_labels(folder).now == {"stable": 2, "canary": 3}
    assert main(["promote", str(folder), "--label", "mine", "--version", "3"]) == 0
    assert main(["promote", str(folder), "--version", "3"]) == 0
    assert main(["promote", str(folder), "--label", "stable", "--version", "3"]) == 0  # nothing to do, and nothing to forget
    assert server_configs.read_labels(folder).before["stable"] == 2
    assert "without a label, but loaded by a server: 1;" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["promote", "{folder}", "--version", "7"], "no version 7 in '{folder}'. There are: [1, 2]"),
        (
            ["rollback", "{folder}"],
            "no earlier version of the label 'stable' is known: name one, `keras-ranking promote {folder} --version N`",
        ),
        (["promote", "{folder}/1"], "no versions in '{folder}/1': a served model has directories named"),
        (["promote", "nowhere"], "no versions in 'nowhere'"),
        (["score", "r.json", "--model", "m", "--label", "canary"], "`--label` needs --server ADDRESS."),
        (["skew", "--model", "m", "--keras", "k", "--events", "e.csv", "--version", "2"], "`--version` needs --server ADDRESS."),
    ],
)
def test_errors(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main([part.format(folder=folder) for part in arguments]) == 2
    assert message.format(folder=folder) in one_line(capsys)


def test_usage(folder: Path) -> None:
    for bad in (["--label", 'a"b'], ["--version", "0"], ["--timeout", "-1"], ["--timeout", "soon"]):
        assert usage_error("promote", str(folder), *bad) == 2
    assert usage_error("score", "r.json", "--server", "x:1", "--version", "1", "--label", "canary") == 2


def test_a_server_follows(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No config that the server refuses is written."""
    server = ModelServer(folder)
    assert server.reload()
    calls = attach(monkeypatch, server)
    assert main(["promote", str(folder), "--server", "here:1"]) == 0
    assert server.labels == {"stable": 2, "canary": 2} and all(calls.accepted)
    assert main(["rollback", str(folder), "--server", "here:1"]) == 0
    assert server.labels == {"stable": 1, "canary": 2} and all(calls.accepted)


def test_a_server_that_is_stuck_with_named_versions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 was exported by an earlier release: its config names versions, and the server refuses it."""
    path = folder / "tf_serving" / server_configs.MODELS
    old = path.read_text().replace("all {}", "specific { versions: 1 }").replace("value: 2", "value: 1")
    path.write_text(old)
    server = ModelServer(folder)
    assert server.reload()
    path.write_text(old.replace("versions: 1", "versions: 1 versions: 2").replace('"canary" value: 1', '"canary" value: 2'))
    assert not server.run() and server.available == {1}, "control"
    attach(monkeypatch, server)
    assert main(["promote", str(folder), "--server", "here:1", "--version", "2", "--label", "canary"]) == 0
    assert server.labels == {"stable": 1, "canary": 2} and server.available == {1, 2}


def test_a_version_that_does_not_load(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    server = ModelServer(folder, loads=lambda version: version == 1)
    before = (folder / "tf_serving" / server_configs.MODELS).read_text()
    (folder / "tf_serving" / server_configs.MODELS).write_text(before.replace('"canary" value: 2', '"canary" value: 1'))
    assert server.reload()
    attach(monkeypatch, server)
    assert main(["promote", str(folder), "--version", "2", "--server", "here:1"]) == 1
    assert "the server could not load version 2: no such op" in one_line(capsys)
    assert server_configs.read_labels(folder).now == server.labels == {"stable": 1, "canary": 1}


def test_a_server_that_does_not_follow(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    server = ModelServer(folder)
    assert server.reload()
    calls = attach(monkeypatch, server)
    monkeypatch.setattr(calls, "version_of", lambda label: 1)
    assert main(["promote", str(folder), "--server", "here:1", "--timeout", "0.05"]) == 1
    assert "waited 0.05 s for the label 'stable' to be version 2. Does the server read" in one_line(capsys)


def test_score_and_skew_pass_version_and_label_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Up to the client, which sends them; the server is not there."""
    from keras_ranking import serving
    from keras_ranking.data import simulate

    made: list[dict[str, Any]] = []

    def client(address: str, schema: Any, name: str, protocol: str, **settings: Any) -> Any:
        made.append(settings)
        raise ConnectionError("no server")

    monkeypatch.setattr(serving, "Client", client, raising=False)
    log = simulate(members=4, days=2, seed=0)
    log.schema.save(tmp_path / "schema.json")
    request, events = tmp_path / "request.json", tmp_path / "events.csv"
    request.write_text('{"time": 1, "candidates": [{"item_id": 1}]}')
    log.events.to_csv(events, index=False)
    score = ["score", str(request), "--server", "here:1", "--schema", str(tmp_path / "schema.json")]
    skew = ["skew", "--server", "http://here:1", "--keras", str(tmp_path), "--events", str(events)]
    assert main([*score, "--version", "3"]) == main([*score, "--label", "canary"]) == main([*skew, "--label", "stable"]) == main(skew) == 1
    assert [(settings["version"], settings["label"]) for settings in made] == [(3, None), (None, "canary"), (None, "stable"), (None, None)]
