"""What a `RankingModel` is made of: the layers of a model wired three ways, and the call that builds them again."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np

from keras_ranking.configuration import option_names
from keras_ranking.layers import Forest, RandomEffect
from keras_ranking.layers.embedding.quantized_embedding import tables_are_quantized
from keras_ranking.schema import Schema

Tensors = dict[str, Any]


class Wiring(Protocol):
    """The layers of a model, wired three ways. Every method takes and returns symbolic or real tensors alike.

    A wiring may also have `boundaries`, `serving_tower`, `auxiliary`, `loss_settings`, `returns_towers`, `encodes_at_moment`, `extend`,
    `cannot_extend`, `explore`, `last_inputs`, `posteriors`, `effects` and `stream_inputs`: see the properties of `RankingModel` that read
    them.
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

    def forget(self, *kinds: str) -> None:
        """Have the graphs of these kinds built anew at their next use."""
        for kind in kinds:
            self.built.pop(kind, None)


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


def extension_of(wiring: Wiring, name: str) -> Callable[..., Tensors]:
    """The function (cache, later events) -> longer cache of a model.

    Raises:
        ValueError: the cache cannot grow, with the reason.
    """
    extend = getattr(wiring, "extend", None)
    if extend is None:
        raise ValueError(
            f"the cache of the model '{name}' cannot be extended: {getattr(wiring, 'cannot_extend', 'nothing of it is kept')}."
        )
    return typing.cast(Callable[..., Tensors], extend)


def saved_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a saved file; those of earlier versions, whose masks told sessions by pauses, say so."""
    found = dict(arguments)
    if found.get("mask") == "session" or found.get("history_mask") == "sessions":
        found.setdefault("session_by", "gap")
    if "base_arguments" in found:
        found["base_arguments"] = saved_arguments(found["base_arguments"])
    return found


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


class HasHeads:
    """A model with layers of tasks, and a trunk below them."""

    @property
    def head_layers(self) -> list[str]:
        """Names of the layers of tasks: towers, logits, calibration. All other layers are the trunk.

        Raises:
            ValueError: an ensemble, or a model with a forest.
        """
        call: BuilderCall = self._builder_call  # type: ignore[attr-defined]
        names = [layer.name for layer in self.layers if layer.weights]  # type: ignore[attr-defined]
        return head_names(call.builder, bool(call.arguments.get("shared_trunk", True)), names)


# -- parts of a model by the names of its layers --------------------------------------------------------------------------------

_HEADS = ("head", "set_head", "calibration_features")
_OF_TASKS = ("towers_", "offset_", "isotonic_", "logit_", "posterior_", "effect_", "choice_", "past_logit_")
_FITTED = (Forest, RandomEffect)  # never trained by gradients
WITH_HEADS = ("CADET", "FeedSR", "LiRank", "AmortizedDLRM", "LiGR")


def head_names(builder: str, shared_trunk: bool, names: Iterable[str]) -> list[str]:
    """Those layers of a model that belong to tasks: towers, logits, calibration, posteriors and random effects.

    Args:
        builder: of the model.
        shared_trunk: whether the groups of tasks have one cross net.
        names: of the model's layers with weights.

    Raises:
        ValueError: a model of another builder, such as an ensemble.
    """
    if builder not in WITH_HEADS:
        raise ValueError(f"heads are known of {', '.join(WITH_HEADS)}. Received: a model made by {builder}")
    begins = _OF_TASKS if shared_trunk else (*_OF_TASKS, "trunk_")
    return [name for name in names if name in _HEADS or name.startswith(begins)]


def inner(layer: Any) -> list[Any]:
    """The layers that a layer holds itself."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def freeze_parts(layers: Iterable[Any], paths: Collection[str], above: str = "") -> Iterator[str]:
    """Freeze layers by their paths, such as 'block_0' or 'ids/table_topic'.

    Args:
        layers: of a model, or those that a layer holds.
        paths: what to freeze, with all that it holds.
        above: path of the layer that holds `layers`, with '/' behind it.

    Yields:
        The paths that were found.
    """
    for layer in layers:
        path = f"{above}{layer.name}"
        if path in paths:
            layer.trainable = False
            yield path
        elif any(other.startswith(f"{path}/") for other in paths):
            yield from freeze_parts(inner(layer), paths, f"{path}/")


def frozen_parts(layers: Iterable[Any], above: str = "") -> list[str]:
    """Paths of the layers with weights that are frozen, each with all that it holds."""
    found = []
    for layer in layers:
        if not layer.weights or isinstance(layer, _FITTED):
            continue
        path = f"{above}{layer.name}"
        found += frozen_parts(inner(layer), f"{path}/") if layer.trainable else [path]
    return found


def check_still(layers: Iterable[Any]) -> None:
    """Check that no layer changes its weights in training although it is frozen.

    Raises:
        ValueError: such a layer.
    """
    for layer in layers:
        for one in layer._flatten_layers():
            if isinstance(one, keras.layers.SpectralNormalization):
                raise ValueError(
                    f"layer '{one.name}' changes its weights in training, frozen or not: SpectralNormalization measures its kernel in each "
                    "step. Give its trained inner layer in its place."
                )
