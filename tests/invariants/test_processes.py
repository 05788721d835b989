"""Invariants 6 and 7: the same scores on every backend from one `.keras` file, and from the exported graph in a fresh process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from tests import preloaded
from tests.invariants.conftest import MODELS, Case, before_a_release, make_case, randomise
from tests.invariants.test_exactness import CLEARLY, TOLERANCE, long_requests

pytestmark = [pytest.mark.one_backend, pytest.mark.slow]

SCORE = """
import os, sys, numpy as np, keras, keras_ranking as kr
if keras.backend.backend() == "jax" and "KR_QUICK_CALLS" in os.environ:
    import pytest
    from tests.compiling import whole_models_compiled
    whole_models_compiled(pytest.MonkeyPatch())
for model_file, inputs_file, out_file in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
    model = kr.models.load(model_file)
    inputs = dict(np.load(inputs_file))
    row = {name[4:]: x for name, x in inputs.items() if name.startswith("row_")}
    request = {name[8:]: x for name, x in inputs.items() if name.startswith("request_") and name[8:]}
    out = {f"row_{task}": keras.ops.convert_to_numpy(x) for task, x in model(row).items()}
    out |= {f"request_{name}": keras.ops.convert_to_numpy(x) for name, x in model.serving_model(request).items()}
    np.savez(out_file, backend=keras.backend.backend(), **out)
"""


def fresh_process(script: str, *arguments: Path, backend: str = "tensorflow", **environment: str) -> None:
    # XLA_FLAGS: XLA compiles with its default options, not with those for quick tests.
    settings = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(preloaded.ROOT), "XLA_FLAGS": "", **environment}
    done = preloaded.run(["-c", script, *map(str, arguments)], backend, settings)
    assert done.returncode == 0, done.stderr[-3000:]


def session_scores(version: Path, *requests: dict[str, np.ndarray], work: Path) -> list[dict[str, np.ndarray]]:
    """Scores of a version for some requests, computed in one new process as a server does: in a V1 session, without this package."""
    from tests.serving.exporting.test_signatures import RUN, same_three_ways

    files = [(work / f"inputs_{i}.npz", work / f"out_{i}.npz") for i in range(len(requests))]
    for (inputs, _), tensors in zip(files, requests, strict=True):
        np.savez(inputs, **tensors)
    fresh_process(RUN, version, *(file for pair in files for file in pair))
    found = [dict(np.load(out)) for _, out in files]
    for got in found:
        same_three_ways(got)
    return [{name.removeprefix("whole/"): x for name, x in got.items() if name.startswith("whole/")} for got in found]


def by_tower(case: Case, out: dict[str, np.ndarray], prefix: str = "") -> np.ndarray:
    """(B, N, K) scores of an output of the serving graph."""
    name = f"{prefix}click_by_position"
    return out[name] if name in out else out[f"{prefix}click"][..., None]


NAMES = ("cadet", "feedsr_fused_session", "lirank", "amortized", "ligr", "cadet_numbers")


# The export of a CADET, which reads rows, is verified, and its signatures compared, in tests/serving. LiRank reads requests.
EXPORTED = [name if name == "lirank" else before_a_release(name) for name in NAMES]


@pytest.fixture(scope="module", params=EXPORTED)
def case(request: Any, log: Any) -> Case:
    return make_case(log, **MODELS[request.param], **({"explore": ("click",)} if request.param == "lirank" else {}))


@pytest.mark.parametrize("names", [("cadet", "lirank"), before_a_release(NAMES)], ids=["rows and requests", "all"])
def test_every_backend_gives_the_same_scores(log: Any, names: tuple[str, ...], tmp_path: Path, pytestconfig: pytest.Config) -> None:
    quick = {} if pytestconfig.getoption("--all") else {"KR_QUICK_CALLS": "1"}  # as the fixture `quick_calls`
    cases = {name: make_case(log, **dict(MODELS[name])) for name in names}
    requested = {}
    for name, case in cases.items():
        case.model.save(tmp_path / f"{name}.keras")
        inputs = {f"row_{column}": x for column, x in case.rows().items() if column}
        requested[name] = {**inputs, **{f"request_{column}": x for column, x in case.tensors(long_requests(case)).items()}}
        np.savez(tmp_path / f"{name}.npz", **requested[name])
    for backend in ("tensorflow", "jax", "torch"):
        files = [(f"{name}.keras", f"{name}.npz", f"{name}_{backend}.npz") for name in names]
        fresh_process(SCORE, *(tmp_path / file for three in files for file in three), backend=backend, **quick)
    for name, case in cases.items():
        found = {backend: dict(np.load(tmp_path / f"{name}_{backend}.npz")) for backend in ("tensorflow", "jax", "torch")}
        for backend, out in found.items():
            assert str(out.pop("backend")) == backend
        real = requested[name][f"row_{case.segment}"] > 0
        reference = found["tensorflow"]
        for backend in ("jax", "torch"):
            assert found[backend].keys() == reference.keys()
            for output, value in found[backend].items():
                expected = reference[output]
                if output.startswith("row_"):
                    value, expected = value[real], expected[real]
                np.testing.assert_allclose(value, expected, rtol=TOLERANCE, atol=2 * TOLERANCE, err_msg=f"{name} {backend} {output}")
        case.model.set_weights([w * 1.01 for w in case.model.get_weights()])
        moved = case.serve({column[8:]: x for column, x in requested[name].items() if column.startswith("request_") and column[8:]})
        assert np.abs(moved - by_tower(case, reference, "request_")).max() > CLEARLY, f"control: another {name} has different scores"


def test_the_exported_graph_gives_the_keras_scores(case: Case, tmp_path: Path) -> None:
    """All signatures by their names, and scores in one step and in two."""
    from keras_ranking.serving import export
    from tests.serving.exporting.test_signatures import check_names

    version = export(case.model, tmp_path / "served", verify=False)  # compared below, on more requests than in the verification of `export`
    check_names(version, case.model, towers="click_by_position" in case.model.serving_model.output)
    which = long_requests(case)
    exact = case.tensors(which)
    expected = case.serve(exact)
    requests, spares = [], []
    for extra in (0, 1, 13):
        tensors = case.tensors(which, history=exact["history_time"].shape[1] + extra, candidates=expected.shape[1] + extra)
        past = np.arange(tensors["history_time"].shape[1])[None, :] >= tensors["history_length"][:, None]
        spare = np.arange(expected.shape[1] + extra)[None, :] >= tensors["candidate_count"][:, None]
        for name, x in tensors.items():
            if x.ndim > 1 and not name.startswith("member_"):
                x[past if name.startswith("history") else spare] = np.iinfo(np.int32).max if x.dtype == np.int32 else np.nan
        requests.append(tensors)
        spares.append(spare)
    shorter = {**exact, "history_length": np.maximum(exact["history_length"] // 2, 0).astype(np.int32)}
    *padded, short = session_scores(version, *requests, shorter, work=tmp_path)
    for out, spare in zip(padded, spares, strict=True):
        got = by_tower(case, out)
        assert (got[spare] == 0).all()
        np.testing.assert_allclose(got[:, : expected.shape[1]], expected, atol=TOLERANCE)
        np.testing.assert_array_equal(out["click"], got[..., case.model.serving_tower])
    assert np.abs(by_tower(case, short) - expected).max() > CLEARLY, "control: the length has an effect"
    np.testing.assert_allclose(by_tower(case, short), case.serve(shorter), atol=TOLERANCE)


def three_tasks(log: Any) -> tuple[kr.models.RankingModel, Any]:
    events = log.events.assign(long_dwell=(log.events["dwell_seconds"] > 30).astype(int))
    schema = kr.Schema(**{**log.schema.model_dump(), "tasks": ["click", "like", "long_dwell"]}).fit(events)
    small = {"hidden": (12, 12), "rank": 4, "id_dim": 8, "max_history": 8, "calibration_options": {"step": 0.5}}
    groups = {"click": ["click", "long_dwell"], "contribution": ["like"]}
    return kr.models.LiRank(schema, preset="feed", groups=groups, **small), events


@pytest.mark.release
def test_control_rounding_of_large_weights_exceeds_the_bound(log: Any) -> None:
    """Why exports are compared at small weights: at four times their scale, one unit in the last place of each changes a score by more."""
    from keras_ranking.serving.checking.sample_requests import random_raw
    from keras_ranking.serving.checking.verification import keras_scores
    from keras_ranking.serving.exporting.signatures import specs
    from keras_ranking.serving.protocol.raw_values import encode_raw, raw_specs

    moved = {}
    for scale in (0.05, 0.2):
        keras.utils.set_random_seed(0)
        model, _ = three_tasks(log)
        randomise(model, scale=scale)
        start = model.get_weights()
        inputs = specs(model.serving_model, model.schema)[0]
        raw = raw_specs(model.schema, inputs, None)
        batch = encode_raw(model.schema, raw, random_raw(model.schema, raw, (0, 1, 7, 20), (1, 5, 2, 9), seed=1, wild=False))
        before = keras_scores(model.serving_model, batch, inputs)
        # The signs of the changes decide how much cancels: the worst of some draws.
        for seed in range(5):
            rng = np.random.default_rng(seed)
            model.set_weights([np.nextafter(w, rng.choice([-np.inf, np.inf], w.shape), dtype=w.dtype) for w in start])
            after = keras_scores(model.serving_model, batch, inputs)
            moved[scale] = max(moved.get(scale, 0.0), *(np.abs(x - before[task]).max() for task, x in after.items()))
    assert moved[0.05] < TOLERANCE < moved[0.2], moved
