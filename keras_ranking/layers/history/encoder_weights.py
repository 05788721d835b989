"""The weights of a `HistoryEncoder`: those that the history needs, and those that wait for the first candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_ranking.layers.attention.decoder_block import DecoderBlock
from keras_ranking.layers.attention.ligr_block import LiGRBlock
from keras_ranking.layers.base import KERNELS, WeightRules


class EncoderWeights(WeightRules):
    """Base of `HistoryEncoder`, which has the arguments and the steps."""

    appended: bool
    built: bool
    pool: bool
    latest: int
    dim: int | None
    projection: int | None
    num_layers: int
    num_heads: int
    head_dim: int | None
    rotary: Any
    ffn_multiple: float
    dropout_rate: float
    activation: str
    block: str
    block_options: dict[str, Any]
    fusion: str
    widths: tuple[int, ...]
    dtype_policy: Any

    def _needed(self, step: str) -> list[str]:
        raise NotImplementedError

    def build(self, input_shape: Mapping[str, tuple[int | None, ...]]) -> None:
        """All weights; without `candidates` those that the history needs, and the others with the first candidates."""
        if missing := [name for name in self._needed("prefill") if name not in (*input_shape, "visible")]:
            raise ValueError(f"`inputs` of the first call must be a dict of {self._needed('joint')}. Missing: {missing}")
        events, candidates = input_shape["history"][-1], input_shape.get("candidates", (0,))[-1]
        if events is None or candidates is None:
            raise ValueError(f"the last axes of history and candidates must be known. Received: {[events, candidates]}")
        self.event_width, self.candidate_width = int(events), int(candidates)  # 0: not known yet
        if self.appended:
            self.width = int(self.dim or events)
            self.maps = {name: self.dense(self.width, name=f"{name}_map") for name in ("history", "candidate")}
            self.maps["history"].build((None, None, self.event_width))
            if self.candidate_width:
                self.maps["candidate"].build((None, None, self.candidate_width))
            (self._build_filters if self.fusion == "convolution" else self._build_blocks)()
        elif self.candidate_width:
            self.width = self.event_width + self.candidate_width
            self._build_blocks()
        self.built = True

    def _meet_candidates(self, inputs: Mapping[str, Any]) -> None:
        """Build what depends on the width of a candidate, if these are the first ones of a layer that was built from a history alone."""
        if not self.built or self.candidate_width or inputs.get("candidates") is None:
            return
        width = inputs["candidates"].shape[-1]
        if width is None:
            raise ValueError("the last axis of candidates must be known. Received: None")
        self.candidate_width = int(width)
        with self._open_name_scope():  # type: ignore[attr-defined]
            if self.appended:
                self.maps["candidate"].build((None, None, self.candidate_width))
                return
            self.width = self.event_width + self.candidate_width
            self._tracker.unlock()  # type: ignore[attr-defined]  # as Keras's layers do for the weights of LoRA
            self._build_blocks()
            self._tracker.lock()  # type: ignore[attr-defined]

    def get_build_config(self) -> dict[str, Any]:
        """Keras's hook: the widths that are known now, which may be more than those of the first call."""
        if not self.built:
            return {}
        known = {"history": self.event_width, "candidates": self.candidate_width}
        return {"input_shape": {name: [None, None, width] for name, width in known.items() if width}}

    def build_from_config(self, config: Mapping[str, Any]) -> None:
        """Keras's hook."""
        if shapes := config.get("input_shape"):
            others = {name: (None,) for name in self._needed("joint") if name not in ("history", "candidates")}
            self.build({**others, **{name: tuple(shape) for name, shape in shapes.items()}})

    def _build_blocks(self) -> None:
        width, policy = self.width, self.dtype_policy
        shape = (None, None, width)
        options: dict[str, Any] = {
            "num_heads": self.num_heads,
            "head_dim": self.head_dim or max(2, width // self.num_heads // 2 * 2),
            "rotary": self.rotary,
            "ffn_multiple": self.ffn_multiple,
            "dropout": self.dropout_rate,
            "dtype": policy,
        }
        if self.block == "decoder":
            options |= {"gates": (), "activation": self.activation}
        kind: Any = {"decoder": DecoderBlock, "ligr": LiGRBlock}[self.block]
        self.blocks = [kind(**{**options, **self.rules(kind), **self.block_options}, name=f"block_{i}") for i in range(self.num_layers)]
        for block in self.blocks:
            block.build(shape)
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=policy, name="norm")
        self.norm.build(shape)
        self._build_output()

    def _build_filters(self) -> None:
        """Causal filters of each width, D in all, and the projection."""
        kinds, self.filters = len(self.widths), []
        if self.width < kinds:
            raise ValueError(f"`dim` must be at least the number of `widths`. Received: {self.width} and widths={self.widths}")
        rules = self.rules(None, KERNELS)
        for place, width in enumerate(self.widths):
            count = self.width // kinds + (place < self.width % kinds)
            options = {"padding": "causal", "activation": self.activation, "dtype": self.dtype_policy, "name": f"filters_{place}"}
            self.filters.append(keras.layers.Conv1D(count, width, **options, **rules))
            self.filters[-1].build((None, None, self.width))
        self.drop = keras.layers.Dropout(self.dropout_rate, dtype=self.dtype_policy)
        self._build_output()

    def _build_output(self) -> None:
        self.out = None if self.projection is None else self.dense(self.projection, name="projection")
        if self.out is not None:
            self.out.build((None, None, self._output_parts * self.width))

    @property
    def _output_parts(self) -> int:
        """Number of states of width D that are concatenated in the output."""
        return int(self.appended) + int(self.pool) + self.latest
