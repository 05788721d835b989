"""LiGR: a transformer ranker of few features, gated blocks and set-wise attention (LinkedIn, 2502.03417)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking import layers
from keras_ranking.models.amortized import _AmortizedParts
from keras_ranking.models.lirank import resolve
from keras_ranking.models.ranking_model import RankingModel, Tensors, builder
from keras_ranking.schema import Schema

_MERGES = ("replace", "add")
# What `LiRank` calls the same.
_SHARED = (
    *("features", "history_features", "tasks", "head", "head_options", "groups", "id_dim", "action_dim"),
    *("delay", "batch_norm", "max_history", "dropout", "dtype"),
)


@builder
def LiGR(
    schema: Schema,
    dim: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    ffn_multiple: float = 4.0,
    gate: bool = True,
    gate_bias: float = 0.0,
    max_history: int = 100,
    history_mask: str = "sessions",
    session_gap: int = 1800,
    rotary: Sequence[float] | None = (8.0, 15_552_000.0),
    rotate_by: str = "time",
    setwise_layers: int = 1,
    top_k: int | None = 10,
    choose_by: str | None = None,
    merge: str = "replace",
    pointwise_weight: float = 1.0,
    features: Sequence[str] | None = None,
    history_features: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    head: str = "grouped",
    head_options: Mapping[str, Any] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    id_dim: int = 16,
    action_dim: int = 16,
    delay: int | None = None,
    batch_norm: bool = True,
    dropout: float = 0.0,
    dtype: str | None = None,
    name: str = "ligr",
) -> RankingModel:
    """Gated blocks over history and candidates, then gated blocks over the best of the list.

        c_n    = candidate's token, h_j = item and action of a past event
        u_n    = LN(LiGRBlock^num_layers(h, c))            a candidate sees the history and itself, the history once for all
        s_n    = head(u_n)                                 point-wise logits
        v_n    = SetwiseAttention(u)_n, t_n = set head(v_n)       for the `top_k` items of the request with the highest s
        logit  = t_n for these, s_n for all others (merge='replace');    s_n + t_n for these ('add')

    LiGR was withdrawn by its authors; no figure of it is used. Form, second-hand: gates read from the un-normalised stream, SwiGLU,
    a history that is processed once, set-wise attention within a session after it, on about ten items, multi-task heads.
    Everything else, such as how logits are merged, is ours. Both logits are trained, the point-wise one by
    `pointwise_weight` times the same loss, so both are probabilities of the same event; merged lists are in order of them.

    It is trained on requests (`PackedRequests`). No label, position or action of the request itself is an input of its scores, so
    set-wise training cannot leak. `history_mask='sessions'` hides events of one session from each other; from a candidate
    what is younger than `delay` is hidden, so it sees older events of its own session.

    Args:
        schema: the log's columns. Inputs are named by it.
        dim, num_layers, num_heads, ffn_multiple: size of the blocks. gate, gate_bias: see `GatedResidual`; `gate=False`: plain blocks.
        max_history: latest visible events that are read.
        history_mask, session_gap, rotary, rotate_by: see `HistoryEncoder`; 'sessions': a past event sees earlier sessions and itself.
        setwise_layers: blocks of the set-wise part; 0: none, every candidate is scored alone.
        top_k: how many of each request see each other; None: all.
        choose_by: task whose point-wise logit chooses them; None: the first.
        merge, pointwise_weight: see above.
        features: columns of the candidate's token; None: all with known='item' or 'context'. history_features: columns of past events
            next to all actions; None: those known='item'; (): no history.
        tasks: names of the tasks to predict; None: all.
        head, head_options, groups: `MultiTaskHead` of each of the two logits, as in `LiRank`.
        id_dim, action_dim: widths of embeddings of ids, and of what was done with an event.
        delay: seconds after which an event is visible; None: the schema's `feedback_delay`, and no less.
        batch_norm: batch normalisation of the candidate's numbers, frozen at scoring.
        dropout: rate in blocks and heads. dtype: dtype policy. name: of the model.

    Returns:
        A `RankingModel` of form 'requests'.

    Raises:
        ValueError: an unknown task, column or option, an after-scoring column as an input, impossible sizes.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> model = kr.models.LiGR(log.schema.fit(log.events), dim=16, num_layers=1, num_heads=2, max_history=8)
        >>> model.form
        'requests'
    """
    if merge not in _MERGES:
        raise ValueError(f"`merge` must be one of {_MERGES}. Received: merge={merge!r}")
    if dim < 1 or num_heads < 1 or dim % num_heads or num_layers < 1 or setwise_layers < 0:
        raise ValueError(
            "`dim` must be a positive multiple of `num_heads`, `num_layers` positive and `setwise_layers` not negative. "
            f"Received: dim={dim}, num_heads={num_heads}, num_layers={num_layers}, setwise_layers={setwise_layers}"
        )
    if pointwise_weight < 0:
        raise ValueError(f"`pointwise_weight` must not be negative. Received: pointwise_weight={pointwise_weight}")
    given = {
        "features": features,
        "history_features": history_features,
        "tasks": tasks,
        "head": head,
        "head_options": head_options,
        "groups": groups,
        "id_dim": id_dim,
        "action_dim": action_dim,
        "delay": delay,
        "batch_norm": batch_norm,
        "max_history": max_history,
        "dropout": dropout,
        "dtype": dtype,
    }
    found = resolve(schema, cross="none", gate=None, calibration=False, **given)
    if not found["history_features"] and not setwise_layers and num_layers and not found["features"]:
        raise ValueError("`features` must name at least one column of the candidate. Received: none")
    chosen = found["tasks"][0] if choose_by is None else choose_by
    if chosen not in found["tasks"]:
        raise ValueError(f"`choose_by` must be of {found['tasks']}. Received: choose_by={choose_by!r}")
    arguments: dict[str, Any] = {
        **{key: found[key] for key in given},
        "dim": int(dim),
        "num_layers": int(num_layers),
        "num_heads": int(num_heads),
        "ffn_multiple": float(ffn_multiple),
        "gate": bool(gate),
        "gate_bias": float(gate_bias),
        "history_mask": history_mask,
        "session_gap": int(session_gap),
        "rotary": None if rotary is None else [float(end) for end in rotary],
        "rotate_by": rotate_by,
        "setwise_layers": int(setwise_layers),
        "top_k": top_k,
        "choose_by": chosen,
        "merge": merge,
        "pointwise_weight": float(pointwise_weight),
    }
    return RankingModel(_LiGRParts(schema, arguments), "LiGR", schema, arguments, name=name)


class _LiGRParts(_AmortizedParts):
    """The encoder of an amortised DLRM over whole candidates, in gated blocks, and the set-wise part behind it."""

    def __init__(self, schema: Schema, arguments: dict[str, Any]) -> None:
        a = arguments
        encoder = {
            "fusion": "append_falcon",
            **{name: a[name] for name in ("dim", "num_layers", "num_heads", "ffn_multiple", "history_mask", "session_gap")},
            **{name: a[name] for name in ("rotary", "rotate_by")},
            "pool": False,
            "latest": 0,
            "block": "ligr",
            "block_options": {"gate": a["gate"], "gate_bias": a["gate_bias"]},
        }
        ranker = resolve(schema, cross="none", gate=None, calibration=False, **{name: a[name] for name in _SHARED})
        super().__init__(schema, {**ranker, **encoder})
        self.ligr = a
        policy: dict[str, Any] = {"dtype": a["dtype"]}
        if self.history is None:
            # Without a history a candidate's blocks see the candidate alone.
            self.token = keras.layers.Dense(a["dim"], name="token", **policy)
            self.alone = [
                layers.LiGRBlock(
                    a["num_heads"],
                    a["dim"] // a["num_heads"],
                    rotary=None,
                    ffn_multiple=a["ffn_multiple"],
                    gate=a["gate"],
                    gate_bias=a["gate_bias"],
                    dropout=a["dropout"],
                    name=f"block_{i}",
                    **policy,
                )
                for i in range(a["num_layers"])
            ]
            self.norm_alone = keras.layers.LayerNormalization(epsilon=1e-6, name="norm", **policy)
            self.alone_spans = layers.AloneSpans(name="alone_spans")
        self.sets: Any = None
        if a["setwise_layers"]:
            self.sets = layers.SetwiseAttention(
                a["setwise_layers"],
                a["num_heads"],
                ffn_multiple=a["ffn_multiple"],
                gate=a["gate"],
                gate_bias=a["gate_bias"],
                top_k=a["top_k"],
                dropout=a["dropout"],
                name="setwise",
                **policy,
            )
            self.set_norm = keras.layers.LayerNormalization(epsilon=1e-6, name="set_norm", **policy)
            options = {"dropout": a["dropout"], **({"groups": a["groups"]} if a["head"] == "grouped" else {}), **a["head_options"]}
            self.set_head = layers.MultiTaskHead(a["head"], a["tasks"], name="set_head", **policy, **options)
            self.slots = layers.OneSet(name="one_set")

    @property
    def auxiliary(self) -> dict[str, tuple[str, float]]:
        """Outputs of the training graph that are trained next to the tasks: name -> (task, weight of its loss)."""
        weight = self.ligr["pointwise_weight"]
        return {f"{task}_pointwise": (task, weight) for task in self.ligr["tasks"]} if self.sets is not None and weight else {}

    def candidate_inputs(self) -> Tensors:
        count = {} if self.sets is None else {"candidate_count": keras.Input((), dtype="int32", name="candidate_count")}
        return {**super().candidate_inputs(), **count}

    # -- candidates --------------------------------------------------------------------------------------------------------

    def _candidate_token(self, columns: Tensors, real: Any = None) -> Any:
        return self._joined(self._features(columns, real))

    def row(self, inputs: Tensors) -> Tensors:
        slot = inputs["request_slot"]
        columns = {name.removeprefix("candidate_"): x for name, x in inputs.items() if name.startswith("candidate_")}
        states = self._alone(columns, slot) if self.history is None else self._read_packed(inputs)
        logits, first = self._merged(states, slot, whole=False)
        named = {**logits, **({f"{task}_pointwise": value for task, value in first.items()} if self.auxiliary else {})}
        return {name: ops.expand_dims(value, -1) for name, value in named.items()}

    def score(self, cache: Tensors, candidates: Tensors) -> Tensors:
        columns = {name.removeprefix("candidate_"): x for name, x in candidates.items() if name != "candidate_count"}
        states = self._alone(columns) if self.history is None else self._read(cache, candidates, columns)
        slot = None if self.sets is None else self.slots(states, count=candidates["candidate_count"])
        return {task: ops.expand_dims(value, -1) for task, value in self._merged(states, slot, whole=True)[0].items()}

    def last_inputs(self, inputs: Tensors) -> Tensors:
        raise ValueError("LiGR has no posterior of its last layer.")

    def _alone(self, columns: Tensors, real: Any = None) -> Any:
        x = self.token(self._candidate_token(columns, real))
        spans = self.alone_spans(x)
        for block in self.alone:
            x = block(x, spans=tuple(spans))
        return self.norm_alone(x)

    def _merged(self, states: Any, slot: Any, whole: bool) -> tuple[Tensors, Tensors]:
        """Logits (B, N) by task, and point-wise ones."""
        first = self.head(states)
        if self.sets is None:
            return first, first
        moved, chosen = self.sets(states, slot=slot, score=ops.stop_gradient(first[self.ligr["choose_by"]]), whole=whole)
        second = self.set_head(self.set_norm(moved))
        merged = {}
        for task, logit in first.items():
            best = second[task] + logit if self.ligr["merge"] == "add" else second[task]
            merged[task] = ops.where(chosen > 0, best, logit)
        return merged, first
