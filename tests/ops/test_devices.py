"""A batch on several devices of JAX: each works on its own rows, in a process that has four virtual devices."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests import preloaded
from tests.ops.support import EXACT

pytestmark = pytest.mark.one_backend

DEVICES = "--xla_force_host_platform_device_count=4"


def found(*arguments: str, flags: str = "", **environment: str) -> dict[str, dict[str, float]]:
    settings = {"PYTHONPATH": str(preloaded.ROOT), "JAX_PLATFORMS": "cpu", **environment}
    settings["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES} {flags}"
    done = preloaded.run(["-m", "tests.ops.on_four_devices", *arguments], "jax", settings, cwd=preloaded.ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_operations_send_nothing_and_equal_those_of_one_device() -> None:
    """Results and gradients of attention, spans, look-ups in the own row, and losses of a request."""
    for name, out in found("operations").items():
        assert out["away"] < EXACT, name
        assert out["sent"] == 0, name
        assert out["sent_before"] > 0, f"control: XLA alone sends parts of the batch for {name}"


@pytest.mark.release
@pytest.mark.slow
def test_training_steps_send_no_activations(tmp_path: Path) -> None:
    """CADET, and LiRank with a history: the compiled steps have sums of gradients, and nothing else between devices."""
    # XLA writes the programs that it compiles; those of a cache it would not.
    flags = f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*train_step.*"
    for name, out in found("models", str(tmp_path), flags=flags, JAX_ENABLE_COMPILATION_CACHE="false").items():
        assert out["away"] < EXACT, name
        assert out["parts"] == 0, name
        assert out["sums"] > 0, f"control: the step of {name} is one of several devices"
