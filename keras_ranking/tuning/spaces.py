"""What a study varies: ranges and choices of options, from Python or JSON, and the ranges that each model starts with."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keras_ranking.configuration import is_integer, is_real


@dataclass(frozen=True)
class Float:
    """A range of numbers, both ends included.

    Args:
        low, high: smallest and largest value.
        log: whether factors count and not differences, for what spans powers of ten, such as a learning rate.
        step: distance between values, from `low` on; None: any value between.

    Raises:
        TypeError: ends that are no numbers.
        ValueError: an empty range, a range of factors that begins at 0 or below or has a step.

    Example:
        >>> kr.tuning.Float(1e-4, 1e-2, log=True)
        Float(low=0.0001, high=0.01, log=True, step=None)
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        _check_range(self, is_real, "a finite number")

    @property
    def values(self) -> list[float] | None:
        """The values of a range with steps."""
        if self.step is None:
            return None
        return [self.low + self.step * number for number in range(math.floor((self.high - self.low) / self.step + 1e-9) + 1)]


@dataclass(frozen=True)
class Int:
    """A range of integers, both ends included.

    Args:
        low, high: smallest and largest value.
        log: whether factors count and not differences.
        step: distance between values, from `low` on; None: 1.

    Raises:
        TypeError: ends that are no integers.
        ValueError: as `Float`.

    Example:
        >>> kr.tuning.Int(16, 64, step=16).values
        [16, 32, 48, 64]
    """

    low: int
    high: int
    log: bool = False
    step: int | None = None

    def __post_init__(self) -> None:
        _check_range(self, is_integer, "an integer")

    @property
    def values(self) -> list[int]:
        """All values."""
        return list(range(self.low, self.high + 1, self.step or 1))


@dataclass(frozen=True)
class Choice:
    """One of several values, which have no order.

    Args:
        values: at least two: numbers, texts, None, True, False, and lists or mappings of these.

    Raises:
        TypeError: no list of values, or a value that JSON cannot hold.
        ValueError: less than two values, or one twice.

    Example:
        >>> kr.tuning.Choice(["value", "concat"]).labels
        ['value', 'concat']
    """

    values: Any

    def __post_init__(self) -> None:
        if isinstance(self.values, (str, bytes, Mapping)) or not isinstance(self.values, Iterable):
            raise TypeError(f"`values` must be a list of at least two values. Received: values={self.values!r}")
        object.__setattr__(self, "values", tuple(self.values))
        try:
            texts = [json.dumps(value) for value in self.values]
        except TypeError as error:
            raise TypeError(f"`values` must be numbers, texts, None, True, False, lists or mappings. Received: {self.values!r}") from error
        if len(set(texts)) != len(texts) or len(texts) < 2:
            raise ValueError(f"`values` must be at least two different values. Received: values={list(self.values)}")

    @property
    def labels(self) -> list[str]:
        """A text for each value, as the dashboard shows it."""
        texts = [value if isinstance(value, str) else json.dumps(value) for value in self.values]
        return texts if len(set(texts)) == len(texts) else [json.dumps(value) for value in self.values]


Space = Mapping[str, Float | Int | Choice]
_KINDS: dict[str, type] = {"float": Float, "int": Int, "choice": Choice}


def _check_range(value: Any, is_kind: Any, wanted: str) -> None:
    for name in ("low", "high"):
        end = getattr(value, name)
        if not is_kind(end) or not math.isfinite(end):
            raise TypeError(f"`{name}` must be {wanted}. Received: {name}={end!r}")
    if not value.low < value.high:
        raise ValueError(f"`low` must be below `high`. Received: low={value.low}, high={value.high}")
    if value.log and value.low <= 0:
        raise ValueError(f"`low` must be above 0 with log=True. Received: low={value.low}")
    if value.step is not None:
        if not is_kind(value.step) or not 0 < value.step <= value.high - value.low:
            raise ValueError(f"`step` must be above 0 and at most {value.high - value.low}. Received: step={value.step!r}")
        if value.log:
            raise ValueError(f"`step` has no effect with log=True. Received: step={value.step}")


def read_space(given: Any) -> dict[str, Any]:
    """A space from objects, from mappings as in JSON, or from a JSON file.

    Args:
        given: option -> `Float`, `Int`, `Choice`, a list of values, or a mapping with `type` ('float', 'int', 'choice') and the arguments
            of that class; or the path of a JSON file with such mappings.

    Raises:
        TypeError, ValueError: naming the option.
        FileNotFoundError: no such file.
    """
    if isinstance(given, (str, Path)):
        path = Path(given)
        if not path.is_file():
            raise FileNotFoundError(f"no file '{given}', which `space` names")
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(given, Mapping) or not given:
        shown = f"{type(given).__name__}{'' if isinstance(given, Mapping) else f' {given!r}'}"
        raise TypeError(f"`space` must be a mapping of options to ranges, with at least one. Received: {shown}")
    found = {}
    for name, value in given.items():
        try:
            found[str(name)] = _read(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"`space`, option '{name}': {error}") from error
    return found


def _read(value: Any) -> Any:
    if isinstance(value, tuple(_KINDS.values())):
        return value
    if isinstance(value, (list, tuple)):
        return Choice(value)
    example = '{"type": "float", "low": 0.001, "high": 0.01, "log": true} or a list of values'
    if not isinstance(value, Mapping):
        raise TypeError(f"must be a Float, an Int, a Choice, {example}. Received: {value!r}")
    settings = dict(value)
    kind = settings.pop("type", None)
    if kind not in _KINDS:
        raise ValueError(f"its type must be one of {list(_KINDS)}, as in {example}. Received: {kind!r}")
    try:
        return _KINDS[kind](**settings)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        fields = list(_KINDS[kind].__dataclass_fields__)  # type: ignore[attr-defined]
        raise ValueError(f"a '{kind}' has {fields}. Received: {list(settings)}") from error


def as_json(space: Space) -> dict[str, Any]:
    """A space as mappings for JSON."""
    names = {kind: name for name, kind in _KINDS.items()}
    return {name: {"type": names[type(one)], **asdict(one)} for name, one in space.items()}


def distributions(space: Space) -> dict[str, Any]:
    """The same for Optuna."""
    from optuna import distributions as of

    def made(one: Any) -> Any:
        if isinstance(one, Choice):
            return of.CategoricalDistribution(one.labels)
        if isinstance(one, Int):
            return of.IntDistribution(one.low, one.high, log=one.log, step=one.step or 1)
        return of.FloatDistribution(one.low, one.high, log=one.log, step=one.step)

    return {name: made(one) for name, one in space.items()}


def options_of(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Options from the parameters of a trial: values for the labels of choices."""
    found = {}
    for name, value in params.items():
        one = space[name]
        found[name] = one.values[one.labels.index(value)] if isinstance(one, Choice) else value
    return found


def params_of(space: Space, options: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a trial from options: labels for the values of choices."""
    found = {}
    for name, value in options.items():
        one = space[name]
        found[name] = one.labels[list(one.values).index(value)] if isinstance(one, Choice) else value
    return found


def grid_of(space: Space) -> dict[str, list[Any]]:
    """All values of each parameter, for the sampler 'grid'.

    Raises:
        ValueError: a range of any numbers.
    """
    for name, one in space.items():
        if isinstance(one, Float) and one.step is None:
            raise ValueError(f"`space`, option '{name}': sampler='grid' needs a list of values, or a `step`. Received: {one}")
    return {name: one.labels if isinstance(one, Choice) else list(one.values or ()) for name, one in space.items()}


_TRAINING = {"learning_rate": Float(5e-4, 2e-2, log=True), "weight_decay": Float(1e-6, 1e-1, log=True)}
_SEQUENCE: dict[str, Any] = {
    **_TRAINING,
    "pairwise_weight": Float(0.0, 0.2),
    "dropout": Float(0.0, 0.3),
    "dim": Choice((32, 64, 128)),
    "num_layers": Int(1, 4),
}
DEFAULT_SPACES: dict[str, dict[str, Any]] = {
    "cadet": {**_SEQUENCE, "layout": Choice(("value", "interleaved"))},
    "feedsr": _SEQUENCE,
    "lirank": {
        **_TRAINING,
        "pairwise_weight": Float(0.0, 0.2),
        "listwise_weight": Float(0.0, 0.2),
        "dropout": Float(0.0, 0.3),
        "id_dropout": Float(0.0, 0.6),
        "cross_layers": Int(1, 3),
        "hidden": Choice(((64,), (128, 64), (256, 128))),
    },
    "amortized": {
        **_TRAINING,
        "pairwise_weight": Float(0.0, 0.2),
        "listwise_weight": Float(0.0, 0.2),
        "dropout": Float(0.0, 0.3),
        "id_dropout": Float(0.0, 0.6),
        "dim": Choice((32, 64, 128)),
        "num_layers": Int(1, 3),
    },
    "ligr": {
        **_TRAINING,
        "listwise_weight": Float(0.0, 0.2),
        "dropout": Float(0.0, 0.3),
        "id_dropout": Float(0.0, 0.6),
        "dim": Choice((32, 64, 128)),
        "num_layers": Int(1, 3),
    },
}


def default_space(model: str) -> dict[str, Any]:
    """The ranges that a study of a model varies where no `space` is given; all our choice.

    Args:
        model: 'cadet', 'lirank', 'amortized', 'ligr' or 'feedsr'.

    Returns:
        Option -> range.

    Raises:
        ValueError: another name.

    Example:
        >>> kr.tuning.default_space("cadet")["learning_rate"]
        Float(low=0.0005, high=0.02, log=True, step=None)
    """
    if model not in DEFAULT_SPACES:
        raise ValueError(f"`model` must be one of {list(DEFAULT_SPACES)}. Received: model={model!r}")
    return dict(DEFAULT_SPACES[model])
