"""The model card of a version, as JSON and Markdown: model, training data, metrics, sizes and requirements of the server."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_ranking.serving.protocol.model_folder import EXTRA, Card

CARD_JSON, CARD_MARKDOWN = "model_card.json", "model_card.md"
_PACKAGES = ("keras-ranking", "keras", "tensorflow", "jax", "torch", "numpy", "pandas")
_METRIC_FILES = ("validation.json", "test.json", "metrics.json")


def packages() -> dict[str, str]:
    """Versions of the installed packages."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name == "keras-ranking":
                import keras_ranking

                found[name] = keras_ranking.__version__
    return found


def describe(model: Any, card: Card, target: Path, run: Path | None, origin: str, skew: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The card as one JSON object.

    Args:
        model: the Keras model that was exported.
        card: of the version.
        target: its folder, with graph and weights in it.
        run: folder of the training run, for data, metrics and options; None: unknown.
        origin: backend that trained or loaded the model.
        skew: result of the skew check, if a log was given.
    """
    history = _read(run / "history.json") if run else {}
    return {
        "model": card.model,
        "architecture": (model.get_config().get("builder") if hasattr(model, "get_config") else None) or type(model).__name__,
        "arguments": dict(getattr(model, "arguments", {}) or {}),
        "created": card.created,
        "schema_hash": card.schema_digest,
        "tasks": card.tasks,
        "utility": card.utility,
        "code": {"version": card.packages.get("keras-ranking"), "commit": _commit()},
        "backend": {"trained_on": history.get("backend"), "exported_from": origin},
        "packages": card.packages,
        "data": {
            "log": history.get("log"),
            "train_events": history.get("train_events"),
            "span": history.get("data_span"),
            "seed": history.get("seed"),
        },
        "training": {key: history.get(key) for key in ("epochs", "seconds", "training")},
        "metrics": {name: found for name in _METRIC_FILES if run and (found := _read(run / name))},
        "parameters": parameters(model),
        "bytes": sizes(target),
        "signatures": card.signatures,
        "precision": card.precision,
        "compute_dtype": card.compute_dtype,
        "quantized": card.quantized,
        "through": card.through,
        "needs_xla": card.xla,
        "buckets": {"history": card.history_buckets, "candidates": card.candidate_buckets},
        "server_flags": card.server_flags,
        "verified": card.verified,
        "skew": dict(skew) if skew is not None else None,
    }


def write(content: Mapping[str, Any], target: Path) -> None:
    """Write `model_card.json` and `model_card.md` into the version."""
    text = json.dumps(content, indent=2, default=str) + "\n"
    (target / EXTRA / CARD_JSON).write_text(text, encoding="utf-8")
    (target / EXTRA / CARD_MARKDOWN).write_text(markdown(content), encoding="utf-8")


def parameters(model: Any) -> dict[str, int]:
    """Numbers of weights in embedding tables and in other layers. Codes of a quantised table count as weights."""
    from keras_ranking.layers import QuantizedEmbedding

    layers = list(model._flatten_layers())
    import keras

    tables = {id(v): v for layer in layers if isinstance(layer, (keras.layers.Embedding, QuantizedEmbedding)) for v in layer.weights}
    every = {id(v): v for layer in layers for v in layer.weights}

    def count(variables: Mapping[int, Any]) -> int:
        return sum(int(keras.ops.size(v)) if v.shape else 1 for v in variables.values())

    return {"total": count(every), "tables": count(tables), "dense": count(every) - count(tables)}


def sizes(target: Path) -> dict[str, int]:
    """Bytes on disk: of the graph, of the weights, and in total."""
    files = {path: path.stat().st_size for path in target.rglob("*") if path.is_file()}
    weights = sum(size for path, size in files.items() if path.parent.name == "variables")
    graph = (target / "saved_model.pb").stat().st_size
    return {"graph": graph, "weights": weights, "total": sum(files.values())}


def markdown(content: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    data, code, size, count = (content[name] for name in ("data", "code", "bytes", "parameters"))
    lines = [
        f"# {content['model']}",
        "",
        "| what | value |",
        "|---|---|",
        f"| architecture | {content['architecture']} |",
        f"| tasks | {', '.join(content['tasks'])} |",
        f"| score | {_sum_of(content['utility'])} |",
        f"| created | {content['created']} |",
        f"| schema hash | `{content['schema_hash']}` |",
        f"| code | {code['version']}" + (f", commit {code['commit']}" if code["commit"] else "") + " |",
        f"| trained on | {_or_unknown(content['backend']['trained_on'])} backend, log {_or_unknown(data['log'])}, "
        f"{_or_unknown(data['train_events'])} events, {_span(data['span'])} |",
        f"| exported from | {content['backend']['exported_from']} backend, through {content['through']} |",
        f"| parameters | {count['total']:,}: tables {count['tables']:,}, dense {count['dense']:,} |",
        f"| bytes | {size['total']:,}: weights {size['weights']:,}, graph {size['graph']:,} |",
        f"| matrix products | {content['precision']} |",
        f"| tables in int8 | {'yes' if content['quantized'] else 'no'} |",
        f"| needs XLA | {'yes' if content['needs_xla'] else 'no'} |",
        f"| server flags | {' '.join(f'`{flag}`' for flag in content['server_flags']) or 'none'} |",
        f"| packages | {', '.join(f'{name} {version}' for name, version in content['packages'].items())} |",
    ]
    if content["verified"]:
        found = content["verified"]
        lines.append(f"| checked | largest difference to Keras {found['largest_difference']:.2g}, bound {found['bound']:g} |")
    if content["skew"]:
        lines.append(f"| skew | {content['skew']['requests']} requests replayed, {'found' if content['skew']['found'] else 'none found'} |")
    for name, metrics in content["metrics"].items():
        tasks = {task: figures for task, figures in metrics.items() if isinstance(figures, Mapping)}
        names = list(dict.fromkeys(figure for figures in tasks.values() for figure in figures))
        lines += [
            "",
            f"## Metrics, {name.removesuffix('.json')}",
            "",
            "| task | " + " | ".join(names) + " |",
            "|---" * (len(names) + 1) + "|",
        ]
        lines += [f"| {task} | " + " | ".join(_figure(figures.get(figure)) for figure in names) + " |" for task, figures in tasks.items()]
    lines += ["", "## Signatures", ""]
    for name, tensors in content["signatures"].items():
        lines.append(f"- `{name}`: " + "; ".join(f"{side} {', '.join(_shape(k, s) for k, s in tensors[side].items())}" for side in tensors))
    return "\n".join(lines) + "\n"


def _shape(name: str, spec: Mapping[str, Any]) -> str:
    return f"`{name}` {spec['dtype']} ({', '.join('?' if size is None else str(size) for size in spec['shape'])})"


def _sum_of(utility: Mapping[str, float]) -> str:
    return " + ".join(f"{weight:g} {task}" for task, weight in utility.items()).replace("+ -", "- ") or "none: no utility"


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "not defined"


def _span(span: Mapping[str, Any] | None) -> str:
    return "span not known" if not span else f"{span['learned'][0]} to {span['learned'][1]}, reading from {span['read'][0]} on"


def _or_unknown(value: Any) -> str:
    return "not known" if value is None else str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _commit() -> str | None:
    """Commit of the package's own source tree; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
