"""Who may import whom: arrows between rooms run downwards, files import one another in no circle, and folders stay small."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "keras_ranking"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]

BACKENDS = {"tensorflow", "jax", "torch"}
KERAS = {"keras", "keras_rs"}
ARRAYS = {"numpy", "pandas"}
BASE = {"schema", "configuration", "ops", "ops.replicas"}
LAYERS = {
    f"layers.{room}"
    for room in ("base", "tokens", "attention", "history", "lists", "interaction", "embedding", "multi_task", "heads", "forests")
}
MODELS = BASE | LAYERS | {"layers", "losses", "metrics", "optimizers"}
_OF_TRAINING = ("daily", "distribution", "incremental", "post_training", "scoring", "streaming", "tracking", "transfer", "weighting")
TRAINING = {f"training.{room}" for room in _OF_TRAINING} | {"training"}
SERVING = {f"serving.{room}" for room in ("protocol", "checking", "exporting", "client", "histories", "server")}
DATA = {"data", "data.counts", "data.readers", "data.shards", "data.simulation"}

# room -> (rooms it may import from, packages from outside it may import)
ARROWS: dict[str, tuple[set[str], set[str]]] = {
    "": ({"schema"}, set()),
    "schema": ({"configuration", "ops"}, ARRAYS | {"pydantic"}),
    "configuration": (set(), set()),
    "ops": ({"ops.backends", "ops.replicas"}, ARRAYS | {"keras", "farmhash"}),
    "ops.backends": ({"ops", "ops.replicas"}, {"keras", "numpy"} | BACKENDS),
    "ops.replicas": ({"ops"}, {"keras", "numpy"} | BACKENDS),
    "layers": (LAYERS, set()),
    "layers.base": (BASE, {"keras", "numpy"}),
    "layers.embedding": (BASE | {"layers.base"}, KERAS | {"numpy"}),
    "layers.interaction": (BASE | {"layers.base"}, KERAS | {"numpy"}),
    "layers.attention": (BASE | {"layers.base"}, KERAS | {"numpy"}),
    "layers.multi_task": (BASE | {"layers.base"}, KERAS | {"numpy"}),
    "layers.tokens": (BASE | {"layers.base", "layers.embedding"}, KERAS | {"numpy", "pydantic"}),
    "layers.history": (BASE | {"layers.base", "layers.attention"}, KERAS | {"numpy"}),
    "layers.lists": (BASE | {"layers.base", "layers.attention"}, KERAS | {"numpy"}),
    "layers.forests": (BASE | {"layers.base"}, KERAS | {"numpy"}),
    "layers.heads": (BASE | {"layers.base", "layers.interaction"}, KERAS | {"numpy"}),
    "optimizers": (BASE, {"keras"}),
    "plots": ({"metrics"}, {"numpy", "matplotlib"}),
    "reports": (MODELS | {"models", "plots"} | DATA | TRAINING, KERAS | ARRAYS),
    "losses": ({"metrics", "ops", "ops.replicas"}, KERAS | {"numpy"}),
    "metrics": ({"losses", "ops"}, KERAS | {"numpy"}),
    "models.configuration": (MODELS, set()),
    "models.combined": (MODELS | {"models"}, KERAS),
    "models.keras_model": (MODELS | {"models"}, KERAS | {"numpy"}),
    "models": (MODELS | {"models.configuration", "models.combined", "models.keras_model"}, KERAS | {"numpy"}),
    "data": (BASE | {"data.counts", "data.readers", "data.shards", "data.simulation"}, ARRAYS | {"pyarrow"}),
    "data.counts": (BASE | {"data"}, ARRAYS),
    "data.readers": (BASE | {"data", "data.counts"}, ARRAYS | {"pyarrow"}),
    "data.shards": (BASE | {"data", "data.readers"}, ARRAYS),
    "data.simulation": (BASE | {"data", "data.counts", "data.readers"}, ARRAYS),
    "engines": (BASE | DATA, ARRAYS | {"pyarrow", "duckdb", "pyspark"}),
    "training.daily": (
        MODELS | {"models", "training", "training.incremental", "training.post_training", "training.scoring"} | DATA,
        {"keras"} | ARRAYS,
    ),
    "training.distribution": (MODELS | {"models", "training"} | DATA, KERAS | ARRAYS | BACKENDS),
    "training.incremental": (MODELS | {"models", "ops.backends"} | DATA, {"keras", "numpy"}),
    "training.post_training": (MODELS | {"models", "models.combined", "training", "training.scoring"} | DATA, {"keras"} | ARRAYS),
    "training.scoring": (MODELS | {"models", "training", "training.distribution"} | DATA, ARRAYS | {"keras"}),
    "training.tracking": (set(), {"keras", "mlflow"}),
    "training.weighting": (MODELS | {"models"} | DATA, ARRAYS),
    "training.streaming": (MODELS | {"models"} | DATA | TRAINING, ARRAYS | {"keras", "pyarrow"}),
    "training.transfer": (MODELS | {"models", "training", "training.streaming", "training.distribution"} | DATA, {"keras"} | ARRAYS),
    "training": (MODELS | {"models", "models.combined"} | DATA | TRAINING, KERAS | ARRAYS),
    "tuning": (
        MODELS | {"models", "plots"} | DATA | TRAINING,
        {"keras", "numpy", "pandas", "optuna", "optuna_dashboard", "optuna_integration", "sqlalchemy", "scipy", "matplotlib"},
    ),
    "serving": ({"serving.protocol"}, set()),
    "serving.protocol": (BASE | DATA, ARRAYS | {"google", "grpc", "ml_dtypes", "orjson", "tensorflow_serving"}),
    "serving.client": (BASE | DATA | {"serving.protocol"}, ARRAYS | {"grpc", "google"}),
    "serving.histories": (BASE | DATA | {"serving.protocol", "serving.client"}, ARRAYS | {"redis"}),
    "serving.checking": (MODELS | {"models", "serving.protocol"} | DATA, ARRAYS | {"keras", "tensorflow"}),
    "serving.exporting": (
        MODELS | {"", "models", "serving.protocol", "serving.checking"} | DATA,
        ARRAYS | {"keras", "ml_dtypes", "tensorflow", "tensorflow_serving", "jax", "google"},
    ),
    "serving.server": (
        {"configuration", "serving.protocol", "serving.checking", "serving.exporting"},
        {"numpy", "tensorflow", "grpc", "grpc_health", "aiohttp", "prometheus_client", "orjson", "google"},
    ),
    "commands": (MODELS | DATA | TRAINING | SERVING | {"engines", "models", "reports", "serving", "tuning"}, ARRAYS | {"keras"}),
    "cli": ({"", "commands"}, set()),
}
# Files that may import more than their room, and what.
EXCEPTIONS = {
    "data/epochs.py": {"keras"},
    "data/counts/item_factors.py": {"scipy"},
    "data/counts/label_tree.py": {"scipy"},
    "tuning/samplers.py": {"botorch", "gpytorch", "torch"},
    "data/readers/retail_lines.py": {"openpyxl"},
}
MOST_FILES, MOST_LINES = 20, 400


def room_of(path: Path) -> str:
    """'layers.tokens' for keras_ranking/layers/tokens/lengths.py; a file of the package itself is its own room."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if len(parts) == 1:
        of_schema = (
            "column_base",
            "columns",
            "count_column",
            "field_errors",
            "id_columns",
            "id_lists",
            "number_column",
            "number_edges",
            "schema_file",
            "schema_inference",
            "schema_roles",
            "schema_sums",
            "semantic_id_column",
            "task",
            "utility",
            "values",
        )
        return {"__init__": "", **dict.fromkeys(of_schema, "schema")}.get(parts[0], parts[0])
    return ".".join(parts[:-1])


def imports(source: str) -> Iterator[str]:
    """Dotted names that a file imports anywhere, in functions too; those for the type checker alone left out."""
    tree = ast.parse(source)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in (node for node in ast.walk(tree) if id(node) not in for_types):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"line {node.lineno}: imports inside the package are absolute")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (str(name.value) for name in node.args[:1] if isinstance(name, ast.Constant))


def target(name: str) -> Path | None:
    """The file of the package that a dotted name is in, or None for a package from outside."""
    parts = name.split(".")
    if parts[0] != PACKAGE.name:
        return None
    for size in range(len(parts), 0, -1):
        place = PACKAGE.joinpath(*parts[1:size])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file() and file.parent.is_relative_to(PACKAGE):
                return file
    return None


def broken_arrows(path: Path, source: str) -> list[str]:
    """Imports of a file that its room may not have."""
    room = room_of(path)
    rooms, outside = ARROWS[room]
    outside = outside | EXCEPTIONS.get(str(path.relative_to(PACKAGE)), set()) | set(sys.stdlib_module_names)
    bad = []
    for name in imports(source):
        file = target(name)
        if (file is not None and room_of(file) not in rooms | {room}) or (file is None and name.split(".")[0] not in outside):
            bad.append(name)
    return bad


def circles(graph: Mapping[str, set[str]]) -> list[str]:
    """Names that lead back to themselves: what is left when those that import nothing left are taken out, again and again."""
    left = {name: set(targets) & set(graph) for name, targets in graph.items()}
    while free := [name for name, targets in left.items() if not targets & set(left)]:
        for name in free:
            del left[name]
    return sorted(left)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_arrows_run_downwards(path: Path) -> None:
    assert broken_arrows(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("layers/tokens/x.py", "import tensorflow as tf"),
        ("layers/tokens/x.py", "from keras_ranking.layers.history.history_encoder import HistoryEncoder"),
        ("layers/embedding/x.py", "from keras_ranking.layers import KeepFirst"),
        ("models/x.py", "def f():\n    import torch.nn"),
        ("metrics/x.py", "import importlib\njax = importlib.import_module('jax.numpy')"),
        ("data/x.py", "from keras_ranking import models"),
        ("data/x.py", "import keras"),
        ("data/shards/x.py", "import duckdb"),
        ("data/x.py", "from keras_ranking.engines import files"),
        ("losses/x.py", "from keras_ranking.layers import PositionTowers"),
        ("ops/x.py", "import jax"),
        ("training/x.py", "from keras_ranking.serving import export"),
        ("serving/protocol/x.py", "import tensorflow"),
        ("serving/client/x.py", "from keras_ranking.serving.server.limits import Limits"),
        ("serving/checking/x.py", "from keras_ranking.serving.exporting.export import export"),
    ],
)
def test_control_a_broken_arrow_is_seen(where: str, line: str) -> None:
    assert len(broken_arrows(PACKAGE / where, line)) == 1


def test_control_a_relative_import_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2: imports inside the package are absolute"):
        list(imports("import ast\nfrom ..layers import PositionTowers"))


def test_files_import_one_another_in_no_circle() -> None:
    graph = {str(path): {str(file) for name in imports(path.read_text()) if (file := target(name))} - {str(path)} for path in FILES}
    assert circles(graph) == []


def test_control_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_folders_and_files_stay_small() -> None:
    folders = {folder for path in FILES for folder in [path.parent]}
    large = {str(folder.relative_to(ROOT)): size for folder in folders if (size := len(list(folder.glob("*.py")))) > MOST_FILES}
    sources = [path for place in ("keras_ranking", "tests", "tools") for path in (ROOT / place).rglob("*.py")]
    long = {str(path.relative_to(ROOT)): size for path in sources if (size := len(path.read_text().splitlines())) > MOST_LINES}
    assert (large, long) == ({}, {})
