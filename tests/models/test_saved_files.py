"""Files that an earlier commit saved still load, with the scores they had there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.models.saved_files import MODELS, make_file, request, scores

pytestmark = pytest.mark.usefixtures("quick_calls")

DESCRIPTIONS = Path(__file__).parent / "saved"


@pytest.mark.few(2)
@pytest.mark.parametrize("name", MODELS)
def test_a_file_of_an_earlier_commit_gives_its_scores(name: str, tmp_path: Path) -> None:
    description = json.loads((DESCRIPTIONS / f"{name}.json").read_text())
    make_file(description, tmp_path / f"{name}.keras")
    found = scores(tmp_path / f"{name}.keras", description["inputs"])
    assert found.keys() == description["scores"].keys()
    spread = [np.ptp(np.asarray(values)[0], axis=0).max() for values in description["scores"].values()]
    assert min(spread) > 1e-3, "control: the candidates of a request have scores of their own"
    for output, expected in description["scores"].items():
        np.testing.assert_allclose(found[output], expected, rtol=1e-5, atol=2e-6, err_msg=output)


def test_control_another_weight_or_argument_gives_another_score(tmp_path: Path) -> None:
    description = json.loads((DESCRIPTIONS / "cadet.json").read_text())
    config = json.loads(description["config"])
    config["config"]["arguments"]["serving_tower"] = 1
    make_file({**description, "config": json.dumps(config)}, tmp_path / "tower.keras")
    assert scores(tmp_path / "tower.keras", description["inputs"]) != description["scores"]
    place = next(place for place, (shape, _) in description["weights"].items() if "towers" in place and len(shape) > 1)
    made = tmp_path / "weight.keras"
    make_file({**description, "weights": {**description["weights"], place: [description["weights"][place][0], "int32"]}}, made)
    assert scores(made, description["inputs"]) != description["scores"], "zeros in the place of a weight"


def test_the_request_is_the_same_everywhere() -> None:
    first = request({"candidate_x": ([None, None], "float32"), "history_length": ([None], "int32")})
    assert first["candidate_x"].shape == (2, 3) and first["history_length"].tolist() == [5, 0]
