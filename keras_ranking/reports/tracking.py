"""Numbers and figures of a report for TensorBoard and MLflow."""

from __future__ import annotations

import io
import json
import math
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_ranking.training.tracking.event_file import EventFile
from keras_ranking.training.tracking.mlflow import client_of, experiment_of, log_metrics

if TYPE_CHECKING:
    from keras_ranking.reports.report import RunReport

PICTURES = "report"  # folder of TensorBoard that has the figures, which are of all runs


def numbers_of(report: RunReport, run: str) -> dict[str, float]:
    """Metrics of a run by 'TASK/METRIC', with the ends of intervals, and differences to the first run; what is undefined is left out."""
    found: dict[str, float] = {}
    for task in report.tasks:
        measured = {"": report.figures_by_task[task][run], "_difference": report.differences[task].get(run, {})}
        for ending, values in measured.items():
            for metric, (value, low, high) in values.items():
                name = f"{task}/{metric}{ending}"
                found |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def pictures_of(report: RunReport) -> dict[str, bytes]:
    """The figures of the page, as PNG, by name."""
    found = {}
    for name, figure in report.plots().items():
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
        found[name] = file.getvalue()
    return found


def to_tensorboard(report: RunReport, folder: str | Path) -> Path:
    """`RunReport.to_tensorboard`."""
    folder, pictures = Path(folder), pictures_of(report)
    for run in report.runs:
        EventFile(folder / run).scalars(numbers_of(report, run), 0)
    file = EventFile(folder / PICTURES)
    for name, picture in pictures.items():
        file.image(name, picture, 0)
    return folder


def to_mlflow(report: RunReport, uri: str | None, experiment: str) -> str:
    """`RunReport.to_mlflow`."""
    client: Any = client_of(uri)
    pictures = pictures_of(report)
    run_id: str = client.create_run(experiment_of(client, experiment), run_name=report.title).info.run_id
    numbers = {f"{run}/{name}": value for run in report.runs for name, value in numbers_of(report, run).items()}
    if len(report.runs) == 1:
        numbers = numbers_of(report, report.runs[0])
    log_metrics(client, run_id, {_plain(name): value for name, value in numbers.items()}, 0)
    with tempfile.TemporaryDirectory() as place:
        for name, picture in pictures.items():
            (Path(place) / f"{_plain(name).replace('/', '_')}.png").write_bytes(picture)
        client.log_artifacts(run_id, place, "figures")
    with tempfile.TemporaryDirectory() as place:
        report.save(Path(place) / "report.html")
        (Path(place) / "report.json").write_text(json.dumps(report.as_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        client.log_artifacts(run_id, place)
    client.set_terminated(run_id)
    return run_id


def _plain(name: str) -> str:
    """A name of the characters that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", name)
