"""Every public docstring has its sections, and every example in one runs and prints what it says.

An example is read with `import numpy as np`, `import pandas as pd`, `import keras` and `import keras_ranking as kr` before it, and
nothing else: what a reader copies from the documentation runs as it stands.
"""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pydantic
import pytest

import keras_ranking as kr
from keras_ranking.ops.hashing import split_fingerprint
from keras_ranking.optimizers import AdamW
from keras_ranking.serving.server.logs import JsonFormatter
from tests.layers.common import ExampleChecker
from tests.public_names import public_objects

PUBLIC = public_objects()
# Names of arguments that a class takes because every Keras object does.
OF_KERAS = {"self", "settings", "kwargs", "name", "dtype"}


def own_docstring(value: object) -> str:
    """A docstring inherited from `keras.layers.Layer` says nothing about the subclass."""
    return str((vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__) or "")


def sections(docstring: str) -> set[str]:
    """Headings of a docstring in Google style, such as 'Args' and 'Call arguments'."""
    return set(re.findall(r"^([A-Z][a-z]+(?: [a-z]+)*):\n", inspect.cleandoc(docstring) + "\n", re.MULTILINE))


def missing_sections(value: object) -> Iterator[str]:
    """What a docstring lacks: an example, `Args` where there are arguments, `Returns` where something is returned."""
    found, parameters = sections(own_docstring(value)), _parameters(value)
    if ">>> " not in own_docstring(value):
        yield "Example"
    if parameters and not found & {"Args", "Attributes"}:
        yield "Args"
    if inspect.isfunction(value) and value.__annotations__.get("return") not in (None, "None") and not found & {"Returns", "Yields"}:
        yield "Returns"
    if inspect.isclass(value) and issubclass(value, keras.layers.Layer):
        yield from ({"Call arguments", "Output"} - found) if "call" in vars(value) else ()


def _parameters(value: object) -> list[str]:
    if inspect.isclass(value) and issubclass(value, pydantic.BaseModel):
        return list(value.model_fields)
    if inspect.isclass(value) and dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value) if field.init]
    if inspect.isclass(value) and "__init__" not in vars(value) and not hasattr(value, "_fields"):
        return []
    return [name for name in inspect.signature(value).parameters if name not in OF_KERAS]  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_a_public_docstring_has_its_sections(name: str, value: object) -> None:
    assert list(missing_sections(value)) == []


def test_control_a_missing_section_is_seen() -> None:
    def bare(rows: int) -> int:
        """Something about rows."""
        return rows

    assert list(missing_sections(bare)) == ["Example", "Args", "Returns"]


# Examples of names that are not public, and whose docstrings are shown all the same.
OTHERS = [("split_fingerprint", split_fingerprint), ("JsonFormatter", JsonFormatter), ("AdamW", AdamW)]


def where(name: str) -> pytest.MarkDecorator:
    """Tensor operations run on torch and TensorFlow, and have tests on JAX; exports are quickest from TensorFlow, training on torch."""
    room = name.split(".")[1] if "." in name else "ops"
    if room in ("layers", "losses", "metrics", "ops"):
        return pytest.mark.one_backend if keras.backend.backend() == "jax" else pytest.mark.every_backend
    return pytest.mark.one_backend if room == "serving" else pytest.mark.quickest


@pytest.mark.parametrize(("name", "value"), [pytest.param(*found, id=found[0], marks=where(found[0])) for found in [*PUBLIC, *OTHERS]])
def test_the_examples_run(name: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example may write files
    finder = doctest.DocTestFinder(recurse=True, exclude_empty=True)
    runner = doctest.DocTestRunner(checker=ExampleChecker(), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    scope = {"kr": kr, "keras": keras, "np": np, "pd": pd} | ({} if "." in name else {name: value})
    lines: list[str] = []
    for found in finder.find(value, name, module=False, globs=scope):
        runner.run(found, out=lines.append)
    assert runner.failures == 0, "".join(lines)
