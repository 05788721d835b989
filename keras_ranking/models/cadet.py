"""CADET: a context-conditioned decoder-only transformer for click prediction (LinkedIn, 2602.11410)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking import layers
from keras_ranking.models.ranking_model import RankingModel, Tensors, builder
from keras_ranking.schema import Schema


@builder
def CADET(
    schema: Schema,
    dim: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int | None = None,
    ffn_multiple: float = 4.0,
    layout: str = "interleaved",
    gates: Sequence[str] = ("representation", "query", "key"),
    gate_bias: float = 2.0,
    rotary: Sequence[float] | None = (8.0, 15_552_000.0),
    delay: int | None = None,
    tower_boundaries: Sequence[int] | None = None,
    tower_hidden: Sequence[int] = (64,),
    serving_tower: int = 0,
    token_features: Sequence[str] | None = None,
    late_features: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    id_dim: int = 16,
    token_hidden: int | None = None,
    action_hidden: int | None = 64,
    dropout: float = 0.0,
    dtype: str | None = None,
    name: str = "cadet",
) -> RankingModel:
    """A causal transformer over a member's events, scoring every item before its action and for every range of positions.

        token_i   = item token of event i, followed by its action token          (layout 'interleaved')
        h         = LN(DecoderBlock^num_layers(tokens; gates, timestamp rotation, delayed spans))   read at item tokens
        s_ik      = tower_k([h_i ; late context features_i]),   p_ik = sigmoid(s_ik)

    Marks: *stated* = in the paper's abstract or a public summary of it; *choice* = the paper's value is not known.

    Args:
        schema: the log's columns. Inputs are named by it.
        dim: D, width of the trunk. Choice.
        num_layers, num_heads, num_kv_heads, ffn_multiple: size of the trunk. Choice (sibling code: 12 layers, 4 heads, 4).
        layout: 'interleaved': an item token and an action token an event (Feed-SR; default by choice). 'value': one token an
            event, actions added to the attention's values only, strictly older events visible (sibling code); half as long.
        gates: of 'representation', 'query', 'key' (stated second-hand, all three) and 'output' (for comparison).
        gate_bias: initial bias of the gates. Choice.
        rotary: (shortest, longest) seconds of timestamp RoPE ("seconds to months": stated; the values: choice). None: no
            rotation, and events are a set without order.
        delay: seconds after which an event is visible to later ones, in training and in serving alike (stated; size: choice).
            None: the schema's `feedback_delay`; less than that is refused, since it would show actions before they are known.
        tower_boundaries: highest position of each tower but the last; (1, 4) means 1, 2-4, 5+ (stated second-hand as an
            example). None: (1, 4) where the schema has a position, else one tower.
        tower_hidden: widths of each tower's hidden layers. Choice.
        serving_tower: index of the tower whose probability is the score; all towers are returned next to it. Choice: the first.
        token_features: columns in the tokens of events and candidates; None: all with known='item'. Context columns may be
            named too (early fusion).
        late_features: columns that join at the towers; None: all with known='context'.
        tasks: names of the tasks to predict; None: all.
        id_dim: width of id embeddings. token_hidden, action_hidden: hidden widths of the token MLPs. Choice.
        dropout: rate in blocks and towers, in training.
        dtype: dtype policy, such as 'mixed_bfloat16'; None: Keras's global one.
        name: of the model.

    Returns:
        A `RankingModel`.

    Raises:
        ValueError: an unknown task or column, an after-scoring column as an input, impossible sizes.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> model = kr.models.CADET(log.schema.fit(log.events), dim=16, num_layers=1, num_heads=2)
        >>> model.compile(optimizer="adam", loss=model.losses_by_task(pairwise_weight=0.1))
    """
    if tower_boundaries is None:
        tower_boundaries = (1, 4) if schema.position is not None else ()
    boundaries = tuple(int(bound) for bound in tower_boundaries)
    if any(bound < 1 for bound in boundaries) or any(a >= b for a, b in itertools.pairwise(boundaries)):
        raise ValueError(f"`tower_boundaries` must be increasing positions from 1 on. Received: tower_boundaries={boundaries}")
    if boundaries and schema.position is None:
        raise ValueError(f"`tower_boundaries` need a schema with a position. Received: tower_boundaries={boundaries}, position=None")
    delay = schema.feedback_delay if delay is None else int(delay)
    if 1 <= delay < schema.feedback_delay:
        raise ValueError(f"`delay` must be at least the schema's feedback_delay, {schema.feedback_delay}. Received: delay={delay}")
    if not 0 <= serving_tower <= len(boundaries):
        raise ValueError(f"`serving_tower` must be from 0 to {len(boundaries)}. Received: serving_tower={serving_tower}")
    if dim < 1 or num_layers < 1 or num_heads < 1 or dim % num_heads:
        raise ValueError(
            f"`dim` must be a positive multiple of `num_heads`, and `num_layers` positive. "
            f"Received: dim={dim}, num_heads={num_heads}, num_layers={num_layers}"
        )
    arguments: dict[str, Any] = {
        "dim": dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "ffn_multiple": ffn_multiple,
        "layout": layout,
        "gates": list(gates),
        "gate_bias": gate_bias,
        "rotary": None if rotary is None else [float(end) for end in rotary],
        "delay": delay,
        "tower_boundaries": list(boundaries),
        "tower_hidden": list(tower_hidden),
        "serving_tower": serving_tower,
        "token_features": [feature.name for feature in schema.inputs(token_features, known=("item",))],
        "late_features": [feature.name for feature in schema.inputs(late_features, known=("context",))],
        "tasks": [schema.task(task).name for task in (tasks if tasks is not None else [task.name for task in schema.tasks])],
        "id_dim": id_dim,
        "token_hidden": token_hidden,
        "action_hidden": action_hidden,
        "dropout": dropout,
        "dtype": dtype or keras.config.dtype_policy().name,
    }
    return RankingModel(_CadetParts(schema, arguments), "CADET", schema, arguments, name=name)


class _CadetParts:
    """The layers of one CADET and how rows, histories and candidates flow through them."""

    form = "rows"

    def __init__(self, schema: Schema, arguments: dict[str, Any]) -> None:
        self.schema = schema
        self.arguments = a = arguments
        self.token_features = schema.inputs(a["token_features"])
        self.late_features = schema.inputs(a["late_features"])
        self.interleaved = a["layout"] == "interleaved"
        self.rotates = a["rotary"] is not None
        policy: dict[str, Any] = {"dtype": a["dtype"]}
        self.item = layers.EventEmbedding(
            self.token_features, a["dim"], hidden=a["token_hidden"], id_dim=a["id_dim"], name="item_token", **policy
        )
        self.action = None
        if schema.actions:
            self.action = layers.ActionEmbedding(
                schema.actions, a["dim"], hidden=a["action_hidden"], id_dim=a["id_dim"], name="action_token", **policy
            )
        elif self.interleaved:
            raise ValueError("layout='interleaved' needs at least one action in the schema. Received: actions=()")
        self.late = None
        if self.late_features:
            self.late = layers.FeatureConcat(self.late_features, id_dim=a["id_dim"], name="late_context", **policy)
        self.spans = layers.DelayedSpans(a["delay"], a["layout"], name="delayed_spans")
        self.visible = layers.VisibleLength(a["delay"], name="visible_length")
        self.token_times = layers.TokenTimes(name="token_times")
        self.interleave = layers.Interleave(name="interleave", **policy)
        self.item_tokens = layers.ItemTokens(name="item_tokens", **policy)
        self.blocks = [
            layers.DecoderBlock(
                a["num_heads"],
                a["dim"] // a["num_heads"],
                a["num_kv_heads"],
                gates=a["gates"],
                gate_bias=a["gate_bias"],
                rotary=a["rotary"],
                ffn_multiple=a["ffn_multiple"],
                dropout=a["dropout"],
                name=f"block_{i}",
                **policy,
            )
            for i in range(a["num_layers"])
        ]
        self.final_norm = keras.layers.LayerNormalization(epsilon=1e-6, name="final_norm", **policy)
        self.join = keras.layers.Concatenate(name="join", **policy)
        self.towers = {
            task: layers.PositionTowers(
                len(a["tower_boundaries"]) + 1, hidden=a["tower_hidden"], dropout=a["dropout"], name=f"towers_{task}", **policy
            )
            for task in a["tasks"]
        }
        self.keep = layers.KeepFirst(name="keep_history")
        self.segments = layers.Segments(name="history_segments")
        self.request_times = layers.RequestTimes(name="request_times")

    # -- inputs ----------------------------------------------------------------------------------------------------------

    def _columns(self, features: Sequence[Any], prefix: str = "") -> Tensors:
        columns = {feature.name: feature for feature in features}
        return {
            prefix + name: keras.Input((None, *feature.shape), dtype=feature.dtype, name=prefix + name) for name, feature in columns.items()
        }

    def row_inputs(self) -> Tensors:
        times = {name: keras.Input((None,), dtype="int32", name=name) for name in ("time", "segment")}
        return {**times, **self._columns((*self.token_features, *self.schema.actions, *self.late_features))}

    def history_inputs(self) -> Tensors:
        return {
            "history_time": keras.Input((None,), dtype="int32", name="history_time"),
            "history_length": keras.Input((), dtype="int32", name="history_length"),
            **self._columns((*self.token_features, *self.schema.actions), "history_"),
        }

    def candidate_inputs(self) -> Tensors:
        return {
            "request_time": keras.Input((), dtype="int32", name="request_time"),
            **self._columns((*self.token_features, *self.late_features), "candidate_"),
        }

    # -- the three ways ----------------------------------------------------------------------------------------------------

    def _trunk(self, inputs: Tensors, times: Any, segments: Any, caches: list[tuple[Any, Any]] | None) -> Any:
        """Blocks over a row of events; appends each block's keys and values to `caches` where given."""
        x = self.item({feature.name: inputs[feature.name] for feature in self.token_features})
        actions = None
        if self.action is not None:
            actions = self.action({feature.name: inputs[feature.name] for feature in self.schema.actions})
        spans = self.spans(times, segments)
        value_bias = None if self.interleaved else actions
        if self.interleaved:
            x, times = self.interleave(x, actions=actions), self.token_times(times)
        for block in self.blocks:
            x, key, value = block(x, times=times, spans=tuple(spans), value_bias=value_bias, return_cache=True)
            if caches is not None:
                caches.append((key, value))
        return self.item_tokens(x) if self.interleaved else x

    def _heads(self, hidden: Any, columns: Tensors) -> Tensors:
        hidden = self.final_norm(hidden)
        if self.late is not None:
            hidden = self.join([hidden, self.late({feature.name: columns[feature.name] for feature in self.late_features})])
        return {task: tower(hidden) for task, tower in self.towers.items()}

    def row(self, inputs: Tensors) -> Tensors:
        return self._heads(self._trunk(inputs, inputs["time"], inputs["segment"], None), inputs)

    def encode(self, history: Tensors) -> Tensors:
        length = history["history_length"]
        clean = {name.removeprefix("history_"): self.keep(x, length=length) for name, x in history.items() if name != "history_length"}
        caches: list[tuple[Any, Any]] = []
        self._trunk(clean, clean["time"], self.segments(clean["time"], length=length), caches)
        return {
            "key": ops.stack([key for key, _ in caches], axis=1),
            "value": ops.stack([value for _, value in caches], axis=1),
            "time": clean["time"],
            "length": length,
        }

    def score(self, cache: Tensors, candidates: Tensors) -> Tensors:
        x, times, visible = self._candidates(cache, candidates)
        for i, block in enumerate(self.blocks):
            x = block(x, times=times, cache=(cache["key"][:, i], cache["value"][:, i], visible), see_self=self.interleaved)
        return self._heads(x, self._bare(candidates))

    def attention(self, cache: Tensors, candidates: Tensors) -> list[Any]:
        """Weights of each block, (B, H, N, keys + 1): see `SelfGatedAttention.candidate_weights`."""
        x, times, visible = self._candidates(cache, candidates)
        weights = []
        for i, block in enumerate(self.blocks):
            keys = (cache["key"][:, i], cache["value"][:, i], visible)
            weights.append(block.attention.candidate_weights(block.attention_norm(x), times, keys, see_self=self.interleaved))
            x = block(x, times=times, cache=keys, see_self=self.interleaved)
        return weights

    @staticmethod
    def _bare(candidates: Tensors) -> Tensors:
        return {name.removeprefix("candidate_"): x for name, x in candidates.items()}

    def _candidates(self, cache: Tensors, candidates: Tensors) -> tuple[Any, Any, Any]:
        """Candidate tokens, their times, and how many cached keys they see."""
        columns = self._bare(candidates)
        x = self.item({feature.name: columns[feature.name] for feature in self.token_features})
        times = self.request_times(x, request_time=candidates["request_time"])
        visible = self.visible(cache["time"], history_length=cache["length"], request_time=candidates["request_time"])
        return x, times, visible + visible if self.interleaved else visible
