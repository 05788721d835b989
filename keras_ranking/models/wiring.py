"""What a `RankingModel` is made of: the layers of a model wired three ways, and the call that builds them again."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np

from keras_ranking.configuration import option_names
from keras_ranking.layers.embedding.quantized_embedding import tables_are_quantized
from keras_ranking.schema import Schema

Tensors = dict[str, Any]


class Wiring(Protocol):
    """The layers of a model, wired three ways. Every method takes and returns symbolic or real tensors alike.

    A wiring may also have `boundaries`, `serving_tower`, `auxiliary`, `loss_settings`, `returns_towers`, `encodes_at_moment`, `extend`,
    `explore`, `last_inputs`, `posteriors`, `effects` and `stream_inputs`: see the properties of `RankingModel` that read them.
    """

    form: str
    """What the training graph reads: 'rows' (packed rows of events) or 'requests' (histories and their shown lists, packed)."""

    def row_inputs(self) -> Tensors:
        """Symbolic inputs of the training graph."""

    def history_inputs(self) -> Tensors:
        """Symbolic inputs of `encode`: `history_*`, and `request_time` where what is kept depends on it; none without a history."""

    def candidate_inputs(self) -> Tensors:
        """Symbolic inputs of `score` next to the cache: `candidate_*` and `request_time`."""

    def row(self, inputs: Tensors) -> Tensors:
        """Inputs of training -> logits (B, T, K) by task."""

    def encode(self, history: Tensors) -> Tensors:
        """History -> cache."""

    def score(self, cache: Tensors, candidates: Tensors) -> Tensors:
        """Cache and candidates -> logits (B, N, K) by task."""

    def attention(self, cache: Tensors, candidates: Tensors) -> list[Any]:
        """Softmax weights of candidates over cached keys and themselves, (B, H, N, keys + 1) a block."""


class UntrackedGraphs:
    """A wiring and the graphs built from it, kept out of Keras's attribute tracking, which would save their weights twice."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.built: dict[str, keras.Model] = {}

    def get(self, kind: str, build: Callable[[], keras.Model]) -> keras.Model:
        """The graph of this kind, built at its first use."""
        if kind not in self.built:
            self.built[kind] = build()
        return self.built[kind]


@dataclass(frozen=True)
class BuilderCall:
    """What a saved file rebuilds a model from: the name of its builder, the schema, and every argument written out."""

    builder: str
    schema: Schema
    arguments: dict[str, Any]
    quantized: bool

    @classmethod
    def of(cls, builder: str, schema: Schema, arguments: Mapping[str, Any]) -> BuilderCall:
        """The call as it is made now, with tables in int8 inside `quantized_tables`."""
        return cls(builder, schema, dict(arguments), tables_are_quantized())


BUILDERS: dict[str, Callable[..., Any]] = {}
_CONFIGURATIONS: dict[str, tuple[type, ...]] = {}


def builder(*configurations: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function that builds a model under its name, so that saved models find it, with its configuration classes."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        BUILDERS[function.__name__] = function
        _CONFIGURATIONS[function.__name__] = configurations
        return function

    return register


def model_options(name: str) -> list[str]:
    """Names of all options of a model: the fields of its configuration classes, and its own arguments.

    Args:
        name: of the function that builds it, such as 'CADET'.

    Returns:
        The names, as `--set NAME=VALUE` and presets use them.

    Raises:
        ValueError: an unknown model.

    Example:
        >>> kr.models.model_options("LiGR")[:3]
        ['dim', 'num_layers', 'num_heads']
    """
    if name not in BUILDERS:
        raise ValueError(f"unknown model '{name}'. There is: {sorted(BUILDERS)}")
    parameters = inspect.signature(BUILDERS[name]).parameters.values()
    own = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    return [*option_names(_CONFIGURATIONS[name]), *own]


def option_types(name: str) -> dict[str, Any]:
    """The annotations of all options of a model, by name: see `model_options`."""
    hints = dict(typing.get_type_hints(BUILDERS[name]))
    for kind in _CONFIGURATIONS[name]:
        hints |= typing.get_type_hints(kind)
    return {option: hints[option] for option in model_options(name) if option in hints}


def task_names(schema: Schema, tasks: Any) -> list[str]:
    """Names of the chosen tasks; None: all of the schema."""
    return [schema.task(task).name for task in (tasks if tasks is not None else [task.name for task in schema.tasks])]


# Dtype policies that a model can be made with; scores and losses are float32 under each.
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16", "bfloat16", "float16")


def policy_name(dtype: Any) -> str:
    """Name of a dtype policy; None: of Keras's global one.

    Raises:
        ValueError: a policy that the models do not have, or float64 as Keras's float type.
    """
    if keras.config.floatx() == "float64":
        raise ValueError(
            "the models of this package compute in float32 or half precision, not in float64. Received: keras.config.floatx()='float64'; "
            "use keras.config.set_floatx('float32')"
        )
    policy = keras.config.dtype_policy() if dtype is None else dtype
    name = policy if isinstance(policy, str) else getattr(policy, "name", None)
    if name in POLICIES:
        return str(name)
    place = "`dtype`" if dtype is not None else "Keras's global dtype policy"
    hint = "; `keras_ranking.serving.quantize_embeddings` makes int8 tables of a trained model" if "int" in str(name) else ""
    raise ValueError(f"{place} must be one of {POLICIES}. Received: {policy if name is None else name!r}{hint}")


def input_columns(features: Any, prefix: str, *lead: int | None) -> Tensors:
    """A symbolic input for each column, named `prefix` + its name, of shape (B, *lead, *shape of the column)."""
    columns = {feature.name: feature for feature in features}
    return {
        prefix + name: keras.Input((*lead, *feature.shape), dtype=feature.dtype, name=prefix + name) for name, feature in columns.items()
    }


def without_prefix(tensors: Mapping[str, Any], prefix: str) -> Tensors:
    """The tensors whose names have the prefix, by their names without it."""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def distinct(features: Any) -> list[Any]:
    """Features without those whose name another one has."""
    return list({feature.name: feature for feature in features}.values())


def copied(variable: Any) -> np.ndarray:
    """A variable's numbers in memory of their own: on JAX a step may give up the array of a variable, which a copy would still hold."""
    return np.array(keras.ops.convert_to_numpy(variable.value))
