"""PositionOffset: a learned logit offset for each of the top positions."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import PassesMask

BEYOND = ("clip", "zero")


@keras.saving.register_keras_serializable(package="keras_ranking")
class PositionOffset(PassesMask, keras.layers.Layer):
    """A logit at every position: `z'_p = z + o_p`, `o = scale w`, p = 1 .. P, and one logit for all positions beyond P.

        out = [z + o_1, z + o_2, ..., z + o_P, z + o_beyond],      o_beyond = o_P ('clip') or 0 ('zero')

    Feed-SR (2602.12354, stated): offsets of each label for the top 60 positions are learned with the model and added to its final
    logits; every item is scored as if it were shown at position 5. The offset of positions beyond 60 is unknown. Here the logits of all
    positions are outputs, and the loss selects that of the position shown (`ObservedTowerLoss` with boundaries 1, 2, .., P).
    Position is not an input, so it cannot change a state of the trunk, and scores at all positions are available.

    Args:
        positions: P.
        beyond: 'clip' or 'zero', see above. Our choice: 'clip'.
        scale: factor on the weights w (P,), which start at zero. An adaptive optimiser changes a weight by at most its learning rate per
            step, and an offset by `scale` times that; in a short training, offsets need larger steps than the weights of the trunk.

    Call arguments:
        inputs: logits z (B, T).

    Output:
        float32 (B, T, P + 1), under every dtype policy.

    Raises:
        ValueError: `positions` below 1, an unknown `beyond`, or a `scale` that is not positive.

    Example:
        >>> keras.ops.convert_to_numpy(kr.layers.PositionOffset(2)(np.array([[0.5]], "float32"))).tolist()
        [[[0.5, 0.5, 0.5]]]
    """

    def __init__(self, positions: int = 60, beyond: str = "clip", scale: float = 1.0, **settings: Any) -> None:
        # autocast=False: a dtype policy of bfloat16 would round the logits it is given
        super().__init__(autocast=False, **settings)
        if positions < 1:
            raise ValueError(f"`positions` must be a positive integer. Received: positions={positions}")
        if beyond not in BEYOND:
            raise ValueError(f"`beyond` must be one of {BEYOND}. Received: beyond={beyond!r}")
        if not 0 < scale < float("inf"):
            raise ValueError(f"`scale` must be a positive number. Received: scale={scale}")
        self.positions, self.beyond, self.scale = int(positions), beyond, float(scale)

    def build(self, input_shape: Any) -> None:
        self.offsets = self.add_weight(name="offsets", shape=(self.positions,), initializer="zeros", dtype="float32", autocast=False)
        self.built = True

    def call(self, inputs: Any) -> Any:
        offsets = self.scale * ops.convert_to_tensor(self.offsets)
        last = offsets[-1:] if self.beyond == "clip" else ops.zeros_like(offsets[-1:])
        return ops.expand_dims(ops.cast(inputs, "float32"), -1) + ops.concatenate([offsets, last])

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor((*inputs.shape, self.positions + 1), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "positions": self.positions, "beyond": self.beyond, "scale": self.scale}
