"""Options of an export, in a form that can be passed to another process."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

HISTORY_BUCKETS = (128, 512, 1024)
CANDIDATE_BUCKETS = (64, 512)
SERVER_BATCHING = ("equal_lengths", "padded")
CPU_FLAG, GPU_FLAG = "--xla_cpu_compilation_enabled=true", "--xla_gpu_compilation_enabled=true"


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """How an exported graph computes.

    Attributes:
        quantize: 'int8': embedding tables as `quantize_embeddings` makes them; `verify` then compares with the quantised Keras model.
        precision: 'bfloat16': matrix products in bfloat16, the rest in float32. For GPUs, and CPUs with AMX or AVX512-BF16.
        xla: False: a plain graph for any server. True: attention and trunk compiled by XLA for fixed lengths; the server
            needs the flags in `server_flags.txt`.
        through: 'jax': the graph compiled by JAX, for CPU and CUDA: `serving_default`, `raw` and `raw_features` only, for fixed
            lengths; longer lists are an error. Needs the package jax and the same server flags.
        history_buckets, candidate_buckets: the fixed lengths of a compiled export. None: (128, 512, 1024), for a model on
            requests up to its `max_history`, and (64, 512).

    Raises:
        ValueError: an unknown choice, or choices that exclude each other.

    Example:
        >>> kr.serving.GraphOptions(quantize="int8", xla=True, candidate_buckets=(64, 256)).precision
        'float32'
    """

    quantize: str | None = None
    precision: str = "float32"
    xla: bool = False
    through: str = "tensorflow"
    history_buckets: Sequence[int] | None = None
    candidate_buckets: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name, known in (("quantize", (None, "int8")), ("precision", ("float32", "bfloat16")), ("through", ("tensorflow", "jax"))):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"`{name}` must be {' or '.join(map(repr, reversed(known)))}. Received: {name}={value!r}")
        if self.through == "jax" and (self.xla or self.precision != "float32"):
            raise ValueError("`through='jax'` is compiled by JAX itself: it takes neither `xla` nor `precision`.")
        for name in ("history_buckets", "candidate_buckets"):
            lengths = getattr(self, name)
            if lengths is not None and not (self.xla or self.through == "jax"):
                raise ValueError(f"`{name}` belong to a compiled export: pass xla=True or through='jax'.")
            object.__setattr__(self, name, None if lengths is None else increasing(name, lengths))


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What an export must pass before its version appears.

    Attributes:
        verify: run every signature in a fresh process, as TensorFlow Serving does, on random requests with invalid values beyond
            their lengths, and compare with the Keras model on each request alone without these values.
        tolerance: largest absolute difference of a probability in `verify`. None: 1e-5, and 3e-2 if matrix products or the whole
            trunk are in a 16-bit type; with `precision`, 6e-2 on a CPU without bfloat16 instructions, where TensorFlow truncates
            products instead of rounding them (our choices).
        skew_bound: largest difference of a score where requests of `events` are replayed. None: as `check_skew`.

    Example:
        >>> kr.serving.Verification(tolerance=1e-6).verify
        True
    """

    verify: bool = True
    tolerance: float | None = None
    skew_bound: float | None = None


@dataclass(frozen=True)
class Options:
    """All options of an export; see `GraphOptions`, `Verification` and `export`."""

    verify: bool = True
    tolerance: float | None = None
    quantize: str | None = None
    precision: str = "float32"
    xla: bool = False
    through: str = "tensorflow"
    history_buckets: list[int] | None = None
    candidate_buckets: list[int] | None = None
    raw_ids: dict[str, str] = field(default_factory=dict)
    allowed_batch_sizes: list[int] = field(default_factory=lambda: [1, 8, 32])
    run: str | None = None
    skew_bound: float | None = None
    name: str = ""
    server_batching: str | None = None
    utility: dict[str, float] | None = None

    def buckets(self, model: Any) -> tuple[list[int], list[int]]:
        """Lengths of a compiled graph; empty for a plain one. The default history lengths end at the model's `max_history`."""
        if not self.compiles:
            return [], []
        # A model on rows reads its latest visible events *in each block*: its requests are longer than `max_history`.
        limit = (getattr(model, "arguments", None) or {}).get("max_history") if getattr(model, "form", None) == "requests" else None
        longest = limit or HISTORY_BUCKETS[-1]
        history = [size for size in HISTORY_BUCKETS if size < longest] + [int(longest)]
        return self.history_buckets or history, self.candidate_buckets or list(CANDIDATE_BUCKETS)

    @property
    def compiles(self) -> bool:
        """Whether the graph needs XLA."""
        return self.xla or self.through == "jax"

    @property
    def server_flags(self) -> list[str]:
        """Flags without which TensorFlow Serving does not run the version."""
        return [CPU_FLAG, GPU_FLAG] if self.compiles else []

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def together(
    graph: GraphOptions,
    verification: Verification,
    raw_ids: Mapping[str, str] | None,
    allowed_batch_sizes: Sequence[int],
    run: str | None,
    name: str,
    server_batching: str | None,
    utility: Mapping[str, float] | None = None,
) -> Options:
    """All options of an export in one object.

    Raises:
        ValueError: batch sizes that are not increasing, or an unknown way of batching.
    """
    if server_batching not in (None, *SERVER_BATCHING):
        known = " or ".join(map(repr, (*SERVER_BATCHING, None)))
        raise ValueError(f"`server_batching` must be {known}. Received: server_batching={server_batching!r}")
    sizes = increasing("allowed_batch_sizes", allowed_batch_sizes)
    rest: dict[str, Any] = {"raw_ids": dict(raw_ids or {}), "allowed_batch_sizes": sizes, "server_batching": server_batching}
    rest |= {"run": run, "name": name, "utility": None if utility is None else {task: float(x) for task, x in utility.items()}}
    return Options(**asdict(graph), **asdict(verification), **rest)


def increasing(name: str, values: Sequence[int]) -> list[int]:
    """Ascending positive integers.

    Raises:
        ValueError: anything else.
    """
    numbers = [int(value) for value in values]
    if not numbers or numbers[0] < 1 or any(a >= b for a, b in itertools.pairwise(numbers)):
        raise ValueError(f"`{name}` must be increasing positive integers. Received: {name}={tuple(values)}")
    return numbers
