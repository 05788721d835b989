"""Further files of a version: warm-up requests, server configs, model card."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from keras_ranking.serving import write_warmup
from keras_ranking.serving.checking.sample_requests import random_requests
from keras_ranking.serving.checking.saved_model import SavedModel
from keras_ranking.serving.exporting import server_configs
from tests.serving.exporting.test_compiled import warmup_records

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.one_backend


@pytest.mark.slow
def test_every_warmup_record_runs(small):
    records = warmup_records(small.version)
    assert records[0].model_spec.signature_name == "serving_default"
    assert sorted(record.model_spec.signature_name for record in records) == sorted(small.card.signatures)
    assert {record.model_spec.name for record in records} == {"ranker"}
    model = SavedModel(small.version)
    for record in records:
        inputs = {name: tf.make_ndarray(proto) for name, proto in record.inputs.items()}
        outputs = model.run(record.model_spec.signature_name, inputs)
        assert all(len(values) == 1 for values in outputs.values())
    model.close()


@pytest.mark.slow
def test_own_warmup(small, tmp_path):
    version = tmp_path / "cadet/1"
    shutil.copytree(small.version, version)
    batch = random_requests(small.card.inputs, (3,), (2,), hostile=False)
    write_warmup(version, {"serving_default": [batch, batch]})
    assert [record.model_spec.name for record in warmup_records(version)] == ["cadet", "cadet"]
    for requests, message in (
        ({"serving_default": []}, "`requests` must hold 1 to 1000 batches. Received: 0"),
        ({"serving_default": [batch] * 1001}, "Received: 1001"),
        ({"guess": [batch]}, "unknown signature 'guess'"),
        ({"serving_default": [{}]}, "inputs of 'serving_default' must be"),
    ):
        with pytest.raises(ValueError, match=message):
            write_warmup(version, requests)
    with pytest.raises(ValueError, match="was not written by `export`"):
        write_warmup(tmp_path)


def parsed(folder):
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    models = text_format.Parse((folder / server_configs.MODELS).read_text(), model_server_config_pb2.ModelServerConfig())
    return models.model_config_list.config[0]


@pytest.mark.slow
def test_configs(small):
    folder = small.version.parent / "tf_serving"
    config = parsed(folder)
    assert (config.name, config.base_path) == ("ranker", "/models/ranker")
    assert dict(config.version_labels) == {"stable": 1, "canary": 1}
    assert config.model_version_policy.WhichOneof("policy_choice") == "all"
    monitoring = (folder / server_configs.MONITORING).read_text()
    assert monitoring == 'prometheus_config {\n  enable: true\n  path: "/monitoring/prometheus/metrics"\n}\n'
    batching = (folder / server_configs.BATCHING).read_text()
    assert "max_batch_size { value: 32 }\nallowed_batch_sizes: 1\nallowed_batch_sizes: 8\nallowed_batch_sizes: 32\n" in batching
    assert "pad_variable_length_inputs: false" in batching and "batch_timeout_micros" in batching
    flags = (folder / server_configs.FLAGS).read_text().splitlines()
    assert "--model_config_file=/models/ranker/tf_serving/models.config" in flags and not [f for f in flags if "xla" in f]


def test_labels_of_the_next_versions(tmp_path):
    """The new version is the canary; the stable one stays until its label is changed or it is removed."""
    folder = tmp_path / "ranker"

    def publish(number):
        (folder / str(number)).mkdir(parents=True)
        (folder / "tf_serving").mkdir(exist_ok=True)
        server_configs.install(server_configs.stage(folder, server_configs.texts(folder, number, [], [1])), folder)
        return server_configs.read_labels(folder).now

    assert publish(1) == {"stable": 1, "canary": 1}
    assert publish(2) == {"stable": 1, "canary": 2}
    (folder / "1").rmdir()
    assert publish(3) == {"stable": 3, "canary": 3}


@pytest.mark.slow
def test_model_card(small):
    extra = small.version / "assets.extra"
    card = json.loads((extra / "model_card.json").read_text())
    assert card["schema_hash"] == small.model.schema.digest and card["architecture"] == "CADET"
    data = card["data"]
    assert card["backend"]["trained_on"] == "jax" and (data["log"], data["train_events"], data["seed"]) == ("simulated", 99, 4)
    assert data["span"]["learned"] == ["2026-05-01T00:00:00+00:00", "2026-05-03T12:00:00+00:00"]
    assert card["metrics"]["validation.json"]["click"]["auc"] == 0.625
    assert card["parameters"]["total"] == small.model.count_params() == card["parameters"]["dense"] + card["parameters"]["tables"]
    tables = [v for v in small.model.weights if v.path.endswith("embeddings")]
    assert card["parameters"]["tables"] == sum(int(np.prod(v.shape)) for v in tables)
    assert card["bytes"]["graph"] == (small.version / "saved_model.pb").stat().st_size < card["bytes"]["total"]
    assert card["skew"]["found"] is False and card["skew"]["requests"] == 64 and card["packages"]["tensorflow"] == tf.__version__
    assert sorted(card["signatures"]) == sorted(small.card.signatures)
    text = (extra / "model_card.md").read_text()
    assert "99 events, 2026-05-01T00:00:00+00:00 to 2026-05-03T12:00:00+00:00, reading from 2026-04-01" in text
    for part in ("| click | 0.6250 | not defined |", "schema hash", "`encode_history`", "| skew | 64 requests replayed, none found |"):
        assert part in text
