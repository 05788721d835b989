"""AmortizedDLRM: a DLRM whose history encoder reads the history once for all candidates (LinkedIn, 2412.06924)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_ranking import layers
from keras_ranking.models._requests import LiRankParts
from keras_ranking.models.lirank import resolve
from keras_ranking.models.ranking_model import RankingModel, Tensors, builder
from keras_ranking.schema import Schema

_OWN = ("fusion", "dim", "num_layers", "num_heads", "ffn_multiple", "history_mask", "session_gap", "pool", "latest", "rotary", "rotate_by")


@builder
def AmortizedDLRM(
    schema: Schema,
    fusion: str = "append_cross",
    dim: int = 64,
    num_layers: int = 2,
    num_heads: int = 2,
    ffn_multiple: float = 2.0,
    max_history: int = 100,
    history_mask: str = "bidirectional",
    session_gap: int = 1800,
    pool: bool = False,
    latest: int = 0,
    rotary: Sequence[float] | None = (8.0, 15_552_000.0),
    rotate_by: str = "time",
    cross: str = "low_rank",
    name: str = "amortized_dlrm",
    **ranker: Any,
) -> RankingModel:
    """A DLRM (embeddings, normalised numbers, cross net beside an MLP, task heads) around an amortised history encoder.

        r_n = HistoryEncoder(history, candidate n)            the history's keys and values computed once, in every layer
        x_n = [BN(numbers) ; embeddings of ids ; r_n],        from here on as `LiRank`

    *Stated* (abstract): candidates are appended to the history; with cross-attention this is on par with joining each to every event,
    and the history is read once a request. Second-hand: keys and values come from the history in every layer. Sizes, read-out,
    encoding of time, and whether past events see later ones are unknown. Defaults without a mark are ours.

    It is trained on requests (`PackedRequests`): histories and lists of several members stand in one row, and one pass over spans
    gives each candidate its own request's history.

    Args:
        schema: the log's columns. Inputs are named by it.
        fusion: 'append_cross' (stated), 'append_falcon': a candidate sees itself too, or, for comparison, 'concat': LiRank's encoder,
            which does not amortise, and 'append_self', which is wrong for more than one candidate; see `HistoryEncoder`.
        dim, num_layers, num_heads, ffn_multiple: size of the encoder.
        max_history: latest visible events that are read.
        history_mask: 'bidirectional': past events see each other both ways, and a cache holds for one request time.
            'causal' or 'sessions', without `pool` and `latest`: a cache serves later requests too, and `extend` adds events to
            it. `encode` does not know of a request then and keeps the latest `max_history` events of all that it is given: give it
            those that are visible. A request in one piece reads the latest visible ones. session_gap: seconds that end a session.
        pool, latest: parts of the encoded history that join next to the candidate's own.
        rotary, rotate_by: rotation by 'time' (periods in seconds) or 'index', or None.
        cross: cross net of the ranker.
        name: of the model.
        ranker: further arguments of `LiRank`: features, tasks, hidden, rank, gate, head, id_dim, delay, ...

    Returns:
        A `RankingModel` of form 'requests'; `encode`, `score` and, where the cache can grow, `extend`.

    Raises:
        ValueError: as `LiRank` and `HistoryEncoder`; a schema without actions or item columns.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> model = kr.models.AmortizedDLRM(log.schema.fit(log.events), dim=16, hidden=(16,), rank=4, max_history=8)
        >>> model.form
        'requests'
    """
    own: dict[str, Any] = {
        "fusion": fusion,
        "dim": int(dim),
        "num_layers": int(num_layers),
        "num_heads": int(num_heads),
        "ffn_multiple": float(ffn_multiple),
        "history_mask": history_mask,
        "session_gap": int(session_gap),
        "pool": bool(pool),
        "latest": int(latest),
        "rotary": None if rotary is None else [float(end) for end in rotary],
        "rotate_by": rotate_by,
    }
    if fusion == "concat" and (pool or history_mask != "bidirectional"):
        received = f"pool={pool}, history_mask={history_mask!r}"
        raise ValueError(f"`pool` and `history_mask` are of an appended history; fusion='concat' always pools. Received: {received}")
    if "history_options" in ranker:
        raise ValueError("`history_options` are those of LiRank's own encoder; here they are arguments: dim, num_layers, rotary, ...")
    options = encoder_options(own)
    layers.HistoryEncoder(max_history=max_history, **options)  # its own errors, early
    ranker = {"calibration": False, **ranker, "cross": cross, "max_history": max_history, "history_options": options}
    arguments = resolve(schema, **ranker)
    if not arguments["history_features"]:
        raise ValueError("AmortizedDLRM reads a history: the schema needs actions, and `history_features` a column known='item'.")
    arguments.pop("history_options")
    return RankingModel(_AmortizedParts(schema, {**arguments, **own}), "AmortizedDLRM", schema, {**arguments, **own}, name=name)


def encoder_options(own: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `HistoryEncoder` for those of the model."""
    if own["fusion"] == "concat":
        kept = ("num_layers", "num_heads", "ffn_multiple", "rotary", "rotate_by")
        return {"fusion": "concat", **{name: own[name] for name in kept}, "projection": own["dim"], "latest": own["latest"]}
    return {name: own[name] for name in (*_OWN, "block", "block_options") if name in own}


class _AmortizedParts(LiRankParts):
    """`LiRankParts` with an appended history: read once by `encode`, or within a row of many requests."""

    def __init__(self, schema: Schema, arguments: dict[str, Any]) -> None:
        super().__init__(schema, {**arguments, "history_options": encoder_options(arguments)})
        steps = () if self.history is None else ("prefill", "score", "extend")
        self.steps = {step: layers.HistoryStep(self.history, step, name=f"history_{step}") for step in steps}

    @property
    def _of_one_moment(self) -> bool:
        """Whether what `encode` keeps depends on the time of the request."""
        return self.history is not None and self.history.amortises and self.history.looks_ahead

    @property
    def encodes_at_moment(self) -> bool:  # type: ignore[override]
        return self.history is not None and self.history.amortises

    def history_inputs(self) -> Tensors:
        inputs = super().history_inputs()
        if self._of_one_moment:
            inputs["request_time"] = keras.Input((), dtype="int32", name="request_time")
        return inputs

    def encode(self, history: Tensors) -> Tensors:
        if self.history is None or not self.history.amortises:
            return super().encode(history)
        events = {name: x for name, x in history.items() if name != "request_time"}
        length = history["history_length"]
        times = self.keep(history["history_time"], length=length)
        if "request_time" in history:
            length = self.visible(times, history_length=length, request_time=history["request_time"])
        return dict(self.steps["prefill"]({"history": self._events(events), "visible": length, "times": times}))

    def _read(self, cache: Tensors, candidates: Tensors, columns: Tensors) -> Any:
        if not self.history.amortises:
            return self._read_joint(cache, candidates, columns)
        if not self._of_one_moment:
            visible = self.visible(cache["time"], history_length=cache["length"], request_time=candidates["request_time"])
            cache = {**cache, "length": visible}
        read = {"candidates": self._candidate_token(columns), "request_time": candidates["request_time"]}
        return self.steps["score"](read, cache=cache)

    def _read_joint(self, cache: Tensors, candidates: Tensors, columns: Tensors) -> Any:
        """Events and candidates in one call: what does not amortise reads the history with every candidate."""
        moment = candidates["request_time"]
        visible = self.visible(cache["time"], history_length=cache["length"], request_time=moment)
        read = {"history": cache["events"], "candidates": self._candidate_token(columns), "visible": visible, "times": cache["time"]}
        return self.history({**read, "request_time": moment})

    def _extend(self, cache: Tensors, history: Tensors) -> Tensors:
        count = history["history_length"]
        times = self.keep(history["history_time"], length=count)
        return dict(self.steps["extend"]({"history": self._events(history), "count": count, "times": times}, cache=cache))

    @property
    def extend(self) -> Any:
        grows = self.history is not None and self.history.amortises and not self.history.looks_ahead
        return self._extend if grows else None
