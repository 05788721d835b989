"""Model configs against a small model of TensorFlow Serving's check of labels, and the flags of batching."""

from __future__ import annotations

import pytest

from keras_ranking.serving.exporting import server_configs
from keras_ranking.serving.exporting.options import GraphOptions, Verification, together
from keras_ranking.serving.exporting.server_configs import Labels
from tests.serving.exporting.model_server import ModelServer, publish

pytest.importorskip("tensorflow_serving")
pytestmark = pytest.mark.one_backend


def move(folder, label, version):
    server_configs.write_models(folder, server_configs.read_labels(folder).moved(label, version))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "ranker"
    publish(made, 1)
    return made


def started(folder, **settings):
    server = ModelServer(folder, **settings)
    assert server.reload()
    return server


def test_a_second_export_reaches_a_running_server(folder):
    server = started(folder)
    publish(folder, 2)
    assert not server.reload(), "the label is checked before the new version is loaded"
    assert server.run()
    assert (server.available, server.labels) == ({1, 2}, {"stable": 1, "canary": 2})
    publish(folder, 3)
    publish(folder, 4)  # two between two polls
    assert server.run() and server.labels == {"stable": 1, "canary": 4}


def test_a_policy_that_names_versions_never_loads_the_new_one(folder):
    """Control: the config of earlier versions of this package."""
    path = folder / "tf_serving" / server_configs.MODELS

    def named():
        versions = " ".join(f"versions: {version}" for version in sorted(set(server_configs.read_labels(folder).now.values())))
        path.write_text(path.read_text().replace("all {}", f"specific {{ {versions} }}"))

    named()
    server = started(folder)
    publish(folder, 2)
    named()
    assert not server.run() and (server.available, server.labels) == ({1}, {"stable": 1, "canary": 1})
    # As `promote --server` mends it: all versions first, with the labels that the server has.
    server_configs.write_models(folder, Labels(dict(server.labels), {}))
    assert server.run() and server.available == {1, 2}
    move(folder, "canary", 2)
    assert server.run() and server.labels == {"stable": 1, "canary": 2}


def test_promote_and_roll_back(folder):
    server = started(folder)
    publish(folder, 2)
    move(folder, "stable", 2)
    assert server_configs.read_labels(folder).before["stable"] == 1
    assert server.run() and server.labels == {"stable": 2, "canary": 2}
    move(folder, "stable", server_configs.read_labels(folder).before["stable"])
    assert server.run() and server.labels == {"stable": 1, "canary": 2}
    assert server_configs.read_labels(folder).before["stable"] == 2
    publish(folder, 3)  # an export keeps what is needed for a rollback
    assert server_configs.read_labels(folder) == Labels({"stable": 1, "canary": 3}, {"stable": 2, "canary": 2})


def test_a_broken_version_takes_no_label(folder):
    server = started(folder, loads=lambda version: version != 2)
    publish(folder, 2)
    assert not server.run() and server.labels == {"stable": 1, "canary": 1}
    publish(folder, 3)
    assert server.run() and server.labels == {"stable": 1, "canary": 3}


def test_other_labels_are_kept_while_their_version_exists(folder):
    publish(folder, 2)
    move(folder, "blue-green", 1)
    move(folder, "mine", 2)
    (folder / "1").rmdir()
    publish(folder, 3)
    assert server_configs.read_labels(folder).now == {"stable": 3, "canary": 3, "mine": 2}
    assert started(folder).labels == {"stable": 3, "canary": 3, "mine": 2}


def test_configs_that_cannot_be_rewritten(folder, tmp_path):
    path = folder / "tf_serving" / server_configs.MODELS
    text = path.read_text()
    path.write_text(text + text)
    with pytest.raises(ValueError, match="must hold one model. Received: 2; edit its labels by hand"):
        move(folder, "stable", 1)
    assert path.read_text() == text + text
    with pytest.raises(FileNotFoundError, match="`keras-ranking export` writes it"):
        server_configs.write_models(tmp_path, Labels({}, {}))
    assert sorted(entry.name for entry in folder.iterdir()) == ["1", "tf_serving"]


@pytest.mark.parametrize("batching", [None, "equal_lengths", "padded"])
def test_batching_is_off_unless_asked(tmp_path, batching):
    folder = tmp_path / "ranker"
    publish(folder, 1, server_batching=batching)
    flags = (folder / "tf_serving" / server_configs.FLAGS).read_text().splitlines()
    assert "--grpc_max_threads=64" in flags
    assert ("--enable_batching=true" in flags) == (batching is not None)
    assert any(flag.startswith("--batching_parameters_file=") for flag in flags) == (batching is not None)
    text = (folder / "tf_serving" / server_configs.BATCHING).read_text()
    assert ("pad_variable_length_inputs: true" in text) == (batching == "padded")
    assert ("stops the server" in text) == (batching == "padded")
    assert "allowed_batch_sizes: 1\nallowed_batch_sizes: 8\n" in text


def test_unknown_batching():
    with pytest.raises(ValueError, match="`server_batching` must be 'equal_lengths' or 'padded' or None. Received: server_batching='yes'"):
        together(GraphOptions(), Verification(), None, [1], None, "ranker", "yes")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('key: "stable" value: 1', "key: 'stable' value: 1"),
        ('key: "stable" value: 1', 'value: 1 key: "stable"'),
        ('base_path: "/models/ranker"', 'base_path: "gs://bucket/ranker"'),
        ('model_platform: "tensorflow"', 'model_platform: "tensorflow" logging_config { sampling_config { sampling_rate: 1 } }'),
    ],
)
def test_what_an_owner_wrote_is_not_lost(folder, old, new):
    path = folder / "tf_serving" / server_configs.MODELS
    edited = path.read_text().replace(old, new)
    path.write_text(edited)
    with pytest.raises(ValueError, match="models.config (has other settings than|must have its labels as)"):
        move(folder, "stable", 1)
    assert path.read_text() == edited


def test_another_name_and_other_spaces_and_comments(folder):
    path = folder / "tf_serving" / server_configs.MODELS
    path.write_text('# version_labels { key: "old" value: 9 }\n' + path.read_text().replace("ranker", "prod").replace(" value", "\n,value"))
    move(folder, "night", 1)
    assert path.read_text() == server_configs.models_text("prod", Labels({"stable": 1, "canary": 1, "night": 1}, {}))
