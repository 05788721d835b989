"""The effect of in-session leakage: AUC of a trained model offline, with earlier actions of the session visible, and online, without.

    python tools/benchmarks/session_leak.py [--model cadet] [--seeds 3] [--json FILE] [--variant NAME:OPTION=VALUE,...]

The log is simulated: a hidden mood affects all labels of a session (`mood_scale`), and actions are in the log a second later, so a
model can read them in training. Ways to train the same model (the first three only with CADET):

* unmasked: `delay=1`, all events before the second of the request are visible;
* delay: a delay longer than any session, 3600 s;
* shuffle: unmasked, with events in a new random order inside their session in each epoch;
* further ones from `--variant`, such as `--variant "session:mask=session"` for a model with a session mask.

Offline: the validation split scored as trained (`predict_events`). Online: the serving graph, with only the events before
the session (`predict_served`). The gap is offline minus online; mean over seeds and 95 % t-interval.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from runs import mean_cell

from keras_ranking import data, metrics, models, training
from keras_ranking.cli import _setting
from keras_ranking.commands import table
from keras_ranking.data import build_sequences, pack

LOG: dict[str, Any] = {"mood_scale": 3.0, "feedback_delay": 1, "taste_scale": 1.0, "sessions_per_day": 0.5}


def evaluate(model: models.RankingModel, log: data.Log, row_length: int = 512) -> tuple[float, float]:
    """AUC of the click offline and online, on the validation split."""
    wanted = (log.events["split"] == "validation").to_numpy()
    kept = log.events["split"].isin(["train", "validation"]).to_numpy()
    sequences = build_sequences(log.events[kept], model.schema, target=wanted[kept])
    rows = pack(sequences, max(row_length, int(np.diff(sequences.offsets).max())))
    offline = training.predict_events(model, rows, shown=False)["click"][:, model.serving_tower]
    online = training.predict_served(model, sequences)["click"]
    label, evaluated = sequences.labels["click"], sequences.target
    return tuple(
        float(metrics.summary(label[evaluated], score[evaluated], sequences.request[evaluated])["auc"]) for score in (offline, online)
    )  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="cadet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--members", type=int, default=400)
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write one JSON object per line to this file")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="option of all variants")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME:OPTION=VALUE,...", help="a further way to train")
    parser.add_argument("--only", help="names of the variants to run, with commas")
    args = parser.parse_args()
    variants: dict[str, dict[str, Any]] = {}
    if args.model == "cadet":
        variants = {"unmasked": {"delay": 1}, "delay": {"delay": 3600}, "shuffle": {"delay": 1, "shuffle_sessions": "epoch"}}
    for text in args.variant:
        name, _, settings = text.partition(":")
        variants[name] = dict(_setting(setting) for setting in settings.split(",") if setting)
    if args.only:
        variants = {name: variants[name] for name in args.only.split(",")}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    lines = []
    for seed in range(args.seeds):
        log = data.simulate(members=args.members, days=args.days, seed=seed, **LOG)
        for name, settings in variants.items():
            model, _ = training.train(log, model=args.model, seed=seed, options={**dict(args.set), **settings}, verbose=False)
            found[name].append(evaluate(model, log))
            offline, online = found[name][-1]
            lines.append({"variant": name, "seed": seed, "offline_auc": offline, "online_auc": online, "gap": offline - online})
            print(json.dumps(lines[-1]), flush=True)
            if args.json:
                args.json.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    rows = [
        [name, mean_cell([a for a, _ in pairs]), mean_cell([b for _, b in pairs]), mean_cell([a - b for a, b in pairs])]
        for name, pairs in found.items()
    ]
    print(table(["training", "offline AUC", "online AUC", "gap"], rows))


if __name__ == "__main__":
    main()
