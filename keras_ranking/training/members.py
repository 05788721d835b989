"""An ensemble: the same training with several seeds, each in a folder of its own, and one model of all of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import keras

from keras_ranking import models
from keras_ranking.data.counted import COUNTS
from keras_ranking.models.combined.ensemble import offsets_of
from keras_ranking.training.checkpoint import FILE, read_checkpoint, write_whole

FOLDER = "members"
_ABOUT = "ensemble.json"
Step = Callable[..., tuple[models.RankingModel, dict[str, Any]]]


def member_folders(folder: str | Path) -> list[Path]:
    """Folders of the members of an ensemble that `train` wrote; none for another training."""
    held = Path(folder) / FOLDER
    return sorted((path for path in held.iterdir() if path.is_dir()), key=lambda path: int(path.name)) if held.is_dir() else []


def ensemble_about(folder: str | Path) -> dict[str, Any]:
    """What the checkpoint of the first member says, with the options of the ensemble; `finished` if all members are.

    Raises:
        FileNotFoundError: no checkpoint of the first member.
    """
    about = read_checkpoint(member_folders(folder)[0]).about
    count = json.loads((Path(folder) / FOLDER / _ABOUT).read_text(encoding="utf-8"))["members"]
    finished = (Path(folder) / "model.keras").is_file()
    return {**about, "options": {**about["options"], "ensemble": count}, "finished": finished}


def train_members(
    train: Step, count: int, seed: int, out: str | Path | None, resume: bool, **settings: Any
) -> tuple[models.RankingModel, dict[str, Any]]:
    """`count` trainings with the seeds `seed`, `seed` + 1, ..., and the mean of their models.

    With `out`, each is in `members/0`, `members/1`, ... as a training of its own; `resume` goes on with the first that is not finished.
    """
    if out is not None:
        (Path(out) / FOLDER).mkdir(parents=True, exist_ok=True)
        write_whole({Path(out) / FOLDER / _ABOUT: lambda path: path.write_text(json.dumps({"members": count}) + "\n", encoding="utf-8")})
        if not resume:
            (Path(out) / "model.keras").unlink(missing_ok=True)
    made = []
    for number in range(count):
        folder = None if out is None else Path(out) / FOLDER / str(number)
        begun = resume and folder is not None and (folder / FILE).is_file()
        if begun and folder is not None and read_checkpoint(folder).about["finished"]:
            made.append((models.load(folder), json.loads((folder / "history.json").read_text(encoding="utf-8"))))
            continue
        if settings.get("verbose"):
            print(f"member {number + 1} of {count}, seed {seed + number}", flush=True)
        try:
            made.append(train(out=folder, seed=seed + number, resume=begun, **settings))
        except KeyboardInterrupt:
            if out is not None:
                where = f"member {number + 1} of {count}; to go on with all: the same with out={str(out)!r}"
                print(where, file=sys.stderr, flush=True)
            raise
    return joined(made, out)


def warm_start_members(
    step: Step, folder: str | Path, out: str | Path | None, **settings: Any
) -> tuple[models.RankingModel, dict[str, Any]]:
    """The daily step of each member, and the mean of their models, with the offsets that the ensemble had."""
    offsets = {task: float(keras.ops.convert_to_numpy(layer.offset)) for task, layer in offsets_of(models.load(folder)).items()}
    made = []
    for one in member_folders(folder):
        made.append(step(folder=one, out=None if out is None else Path(out) / FOLDER / one.name, **settings))
    if out is not None:
        about = Path(folder) / FOLDER / _ABOUT
        write_whole({Path(out) / FOLDER / _ABOUT: lambda path: path.write_bytes(about.read_bytes())})
    return joined(made, out, offsets)


def joined(
    made: list[tuple[models.RankingModel, dict[str, Any]]], out: str | Path | None, offsets: Mapping[str, float] | None = None
) -> tuple[models.RankingModel, dict[str, Any]]:
    """The ensemble, and a history: that of the first member, the seconds of all, and of each member its seed and epochs."""
    ranker = models.ensemble([model for model, _ in made], base_rate=bool(offsets))
    for task, value in (offsets or {}).items():
        offsets_of(ranker)[task].offset.assign(value)
    members = [{name: history[name] for name in ("seed", "epochs", "seconds")} for _, history in made]
    history = {**made[0][1], "seconds": sum(one["seconds"] for one in members), "members": members}
    history["parameters"] = int(ranker.count_params())
    if out is not None:
        text = json.dumps(history, indent=2) + "\n"
        counted = Path(out) / FOLDER / "0" / COUNTS  # all members have the same
        states = sorted(path for path in counted.iterdir() if path.is_file()) if counted.is_dir() else []
        if states:
            (Path(out) / COUNTS).mkdir(exist_ok=True)
        files: dict[Path, Callable[[Path], Any]] = {
            **{Path(out) / COUNTS / path.name: partial(_copy, path) for path in states},
            Path(out) / "model.keras": ranker.save,
            Path(out) / "schema.json": ranker.schema.save,
            Path(out) / "history.json": lambda path: path.write_text(text, encoding="utf-8"),
        }
        write_whole(files)
    return ranker, history


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())
