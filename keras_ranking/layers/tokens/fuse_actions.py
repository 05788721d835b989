"""One token per event: item and action together, or the item only."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import PassesMask


@keras.saving.register_keras_serializable(package="keras_ranking")
class FuseActions(PassesMask, keras.layers.Layer):
    """Item and action in one token, and the token of an item whose action is unknown.

        event = x + a          query = x + m          m (D,): learned, "action unknown"

    The layout 'fused': a query never contains its own action; events that later events see contain theirs. In training the action of
    an event may also be masked at random, so that m also occurs among keys. A fused token with the action masked at random (p = 0.2
    was best), and always masked for candidates, is stated second-hand for a model that cites CADET. Our choice: two streams instead
    of one, so that every event of a row is a training example, and the sum.

    Args:
        masking: p, probability that the action of an event is replaced by m, in training.
        seed: of the random masking.

    Call arguments:
        inputs: item tokens x (B, T, D).
        actions: action tokens a (B, T, D), or None for queries.

    Output:
        (B, T, D).

    Raises:
        ValueError: `masking` outside [0, 1), or an unknown D.

    Example:
        >>> layer = kr.layers.FuseActions()
        >>> items, actions = np.ones((1, 2, 4), "float32"), np.full((1, 2, 4), 2.0, "float32")
        >>> keras.ops.convert_to_numpy(layer(items, actions=actions))[0, :, 0]
        array([3., 3.], dtype=float32)
    """

    def __init__(self, masking: float = 0.0, seed: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if not 0 <= masking < 1:
            raise ValueError(f"`masking` must be in [0, 1). Received: masking={masking}")
        self.masking, self.seed = float(masking), seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, inputs_shape: tuple[int | None, ...], actions_shape: Any = None) -> None:
        if inputs_shape[-1] is None:
            raise ValueError(f"the last axis of the inputs must be known. Received: shape={tuple(inputs_shape)}")
        self.unknown = self.add_weight(name="unknown", shape=(inputs_shape[-1],), initializer=keras.initializers.RandomNormal(stddev=0.02))
        self.built = True

    def call(self, inputs: Any, actions: Any = None, training: bool | None = None) -> Any:
        unknown = ops.cast(self.unknown, inputs.dtype)
        if actions is None:
            return inputs + unknown
        if training and self.masking:
            shape = ops.shape(inputs)
            hidden = keras.random.uniform((shape[0], shape[1], 1), seed=self.seed_generator) < self.masking
            actions = ops.where(hidden, unknown, actions)
        return inputs + actions

    def compute_output_spec(self, inputs: Any, actions: Any = None, training: bool | None = None) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "masking": self.masking, "seed": self.seed}
