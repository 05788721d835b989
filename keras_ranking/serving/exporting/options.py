"""Options of an export, in a form that can be passed to another process."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

HISTORY_BUCKETS = (128, 512, 1024)
CANDIDATE_BUCKETS = (64, 512)
CPU_FLAG, GPU_FLAG = "--xla_cpu_compilation_enabled=true", "--xla_gpu_compilation_enabled=true"


@dataclass(frozen=True)
class Options:
    """Arguments of `export`."""

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


def checked(
    *,
    quantize: str | None,
    precision: str,
    xla: bool,
    through: str,
    history_buckets: Sequence[int] | None,
    candidate_buckets: Sequence[int] | None,
    raw_ids: Mapping[str, str] | None,
    allowed_batch_sizes: Sequence[int],
    **others: Any,
) -> Options:
    """Options with defaults filled in.

    Raises:
        ValueError: an unknown choice, or choices that exclude each other.
    """
    for name, value, known in (
        ("quantize", quantize, (None, "int8")),
        ("precision", precision, ("float32", "bfloat16")),
        ("through", through, ("tensorflow", "jax")),
    ):
        if value not in known:
            raise ValueError(f"`{name}` must be {' or '.join(map(repr, reversed(known)))}. Received: {name}={value!r}")
    if through == "jax" and (xla or precision != "float32"):
        raise ValueError("`through='jax'` is compiled by JAX itself: it takes neither `xla` nor `precision`.")
    buckets: dict[str, Sequence[int] | None] = {"history_buckets": history_buckets, "candidate_buckets": candidate_buckets}
    given = [name for name, lengths in buckets.items() if lengths is not None]
    if given and not (xla or through == "jax"):
        raise ValueError(f"`{given[0]}` belong to a compiled export: pass xla=True or through='jax'.")
    made = {name: None if lengths is None else increasing(name, lengths) for name, lengths in buckets.items()}
    return Options(
        quantize=quantize,
        precision=precision,
        xla=xla,
        through=through,
        raw_ids=dict(raw_ids or {}),
        allowed_batch_sizes=increasing("allowed_batch_sizes", allowed_batch_sizes),
        history_buckets=made["history_buckets"],
        candidate_buckets=made["candidate_buckets"],
        **others,
    )


def increasing(name: str, values: Sequence[int]) -> list[int]:
    """Ascending positive integers.

    Raises:
        ValueError: anything else.
    """
    numbers = [int(value) for value in values]
    if not numbers or numbers[0] < 1 or any(a >= b for a, b in itertools.pairwise(numbers)):
        raise ValueError(f"`{name}` must be increasing positive integers. Received: {name}={tuple(values)}")
    return numbers
