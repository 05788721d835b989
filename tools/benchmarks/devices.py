"""A training step on several virtual devices of JAX (`keras.distribution.DataParallel`): time, and what the devices send each other.

    python tools/benchmarks/devices.py [--models cadet,lirank] [--devices 4] [--members 200] [--set cadet.pairwise_weight=0.1] [--json FILE]

Three forms in one process, on the same batches and from the same weights: `rows`, the package's, in which each device works on its own
rows; `gathered`, the same without `jax.shard_map`, as XLA partitions the loops by itself; and `one`, a single device. Steps of the forms
alternate, and medians of wall and CPU time count. The virtual devices share the cores of this machine, so wall times show what is not
computed several times or waited for, and not what more devices gain. `all_gathers` and `all_reduces` are those in the compiled step.
`loss_difference` is the largest of the first steps from `one`, relative.

One JSON object per line: model, devices, form, wall_ms, cpu_ms, all_gathers, all_reduces, loss_difference.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from processes import print_lines

FORMS = ("one", "rows", "gathered")


def collectives(folder: Path, since: set[Path]) -> dict[str, int]:
    """How many operations between devices the largest training step that XLA wrote to `folder` since then has."""
    files = [path for path in folder.glob("*after_optimizations.txt") if path not in since]
    text = max(files, key=lambda path: path.stat().st_size).read_text()
    return {f"{name.replace('-', '_')}s": len(re.findall(rf" {name}(?:-start)?\(", text)) for name in ("all-gather", "all-reduce")}


def set_form(form: str, devices: int, place_of: Any) -> None:
    """Let what is traced from now on have this form; `place_of` is the package's."""
    import keras

    from keras_ranking.ops.backends import jax, jax_devices, jax_search

    mesh = None if form == "one" else keras.distribution.DataParallel(devices=keras.distribution.list_devices()[:devices])
    keras.distribution.set_distribution(mesh)
    for module in (jax, jax_devices, jax_search):
        module.place_of = place_of if form == "rows" else lambda *_, **__: None  # type: ignore[attr-defined]


def measure(args: argparse.Namespace, dump: Path) -> None:
    import keras

    import keras_ranking as kr
    from keras_ranking.ops.backends import jax_devices
    from keras_ranking.training.options import MODELS, split_options
    from keras_ranking.training.setup import compile_for, training_data

    place_of = jax_devices.place_of
    log = kr.data.simulate(members=args.members, days=7, seed=0)
    schema = log.schema.fit(log.events)
    sequences = kr.data.build_sequences(log.events, schema)
    for name in args.models.split(","):
        given = dict(part.removeprefix(f"{name}.").split("=", 1) for part in args.set if part.startswith(f"{name}."))
        own, training = split_options(name, {key: json.loads(value) for key, value in given.items()}, None)
        run: dict[str, Any] = {}
        for form in FORMS:
            before = set(dump.iterdir())
            keras.utils.set_random_seed(0)
            set_form(form, args.devices, place_of)
            model = MODELS[name](schema, **own)
            dataset, window = training_data(model, sequences, training, 0)
            whole = [dataset[i] for i in range(len(dataset))]
            batches = [batch for batch in whole if len(next(iter(batch[0].values()))) % args.devices == 0][:2]
            compile_for(model, training, steps=100, window=window)
            losses = [float(np.ravel(model.train_on_batch(*batch))[0]) for batch in batches]
            run[form] = {"model": model, "losses": losses, "wall": [], "cpu": [], **collectives(dump, before)}
        for _ in range(args.steps):
            for form in FORMS:
                set_form(form, args.devices, place_of)
                wall, cpu = time.perf_counter(), time.process_time()
                run[form]["model"].train_on_batch(*batches[0])
                run[form]["wall"].append(time.perf_counter() - wall)
                run[form]["cpu"].append(time.process_time() - cpu)
        for form, found in run.items():
            away = np.abs(np.array(found["losses"]) / np.array(run["one"]["losses"]) - 1).max()
            times = {f"{clock}_ms": round(1e3 * statistics.median(found[clock]), 1) for clock in ("wall", "cpu")}
            line = {"model": name, "devices": 1 if form == "one" else args.devices, "form": form, **times}
            line |= {key: found[key] for key in ("all_gathers", "all_reduces")}
            print(json.dumps({**line, "loss_difference": float(away)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="cadet,lirank", help="of cadet, feedsr, lirank, ligr and amortized, separated by commas")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--members", type=int, default=200, help="of the simulated log")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], metavar="MODEL.OPTION=JSON", help="an option of a model or of its training")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        measure(args, args.here)
        return
    with tempfile.TemporaryDirectory() as dump:
        flags = f"--xla_force_host_platform_device_count={args.devices} --xla_dump_to={dump} --xla_dump_hlo_as_text"
        flags += " --xla_dump_hlo_module_re=.*train_step.*"
        env = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_FLAGS": flags}
        command = [sys.executable, __file__, *sys.argv[1:], "--here", dump]
        print_lines(command, env, args.json)


if __name__ == "__main__":
    main()
