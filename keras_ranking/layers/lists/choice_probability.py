"""ChoiceProbability: the probability that an item is the one chosen of its list."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import ReadsMask, WholeInputs, mask_of_all
from keras_ranking.layers.lists.slots import slots_of
from keras_ranking.ops.lists import Lists
from keras_ranking.ops.rows import for_own_rows

NO_CHOICE = ("size", "constant")


@keras.saving.register_keras_serializable(package="keras_ranking")
class ChoiceProbability(WholeInputs, ReadsMask, keras.layers.Layer):
    """Softmax over the items of a list and a further outcome, that none is chosen, with a learned logit.

        P_i = exp(z_i) / (exp(z_0) + sum_{j in R} exp(z_j)),   P_0 = 1 - sum_{j in R} P_j        R: the list of i
        z_0 = b + a ln|R|  ('size')   or   b  ('constant')

    For lists of which at most one item is chosen. Trained by `InRequestChoice`, P is calibrated: items of a strong list share its one
    choice. A permutation of the list permutes the output; other lists and padding change nothing. For a list of one item P is the sigmoid
    of z - z_0.

    Source: multinomial logit with an outside option (McFadden, 1974). That z_0 depends on the size of the list is our choice.

    Args:
        no_choice: 'size' or 'constant', see above. a and b are learned; both start at 0, so z_0 = `initial` at first.
        initial: z_0 before training.
        logits: return log-odds ln P_i / (1 - P_i), of which P_i is the sigmoid, in place of P_i: for losses and models of logits.

    Call arguments:
        inputs: logits z (B, S).
        slot: int32 (B, S), the list of each item; 0 = no item. None: each row is one list.
        mask: boolean (B, S), which slots have an item, next to the Keras mask of the logits.
        return_no_choice: return P_0 too.

    Output:
        float32 (B, S), under every dtype policy; 0 where there is no item. With `return_no_choice` also P_0 of each slot's list,
        float32 (B, S), 1 where there is no item.

    Raises:
        ValueError: an unknown `no_choice`, or an `initial` that is not finite.

    Example:
        >>> layer = kr.layers.ChoiceProbability()
        >>> chosen, none = layer(np.zeros((1, 4), "float32"), slot=np.array([[1, 1, 1, 0]], "int32"), return_no_choice=True)
        >>> keras.ops.convert_to_numpy(chosen).tolist(), keras.ops.convert_to_numpy(none).tolist()
        ([[0.25, 0.25, 0.25, 0.0]], [[0.25, 0.25, 0.25, 1.0]])
    """

    whole = ("slot",)

    def __init__(self, no_choice: str = "size", initial: float = 0.0, logits: bool = False, **settings: Any) -> None:
        # autocast=False: a dtype policy of bfloat16 would round the logits it is given
        super().__init__(**{**settings, "autocast": False})
        if no_choice not in NO_CHOICE:
            raise ValueError(f"`no_choice` must be one of {NO_CHOICE}. Received: no_choice={no_choice!r}")
        if not abs(initial) < float("inf"):
            raise ValueError(f"`initial` must be a finite number. Received: initial={initial}")
        self.no_choice, self.initial, self.logits = no_choice, float(initial), bool(logits)

    def build(self, input_shape: Any) -> None:
        settings: dict[str, Any] = {"shape": (), "initializer": "zeros", "dtype": "float32", "autocast": False}
        self.constant = self.add_weight(name="constant", **settings)
        self.slope = self.add_weight(name="slope", **settings) if self.no_choice == "size" else None
        self.built = True

    def call(self, inputs: Any, slot: Any = None, mask: Any = None, return_no_choice: bool = False) -> Any:
        slot = slots_of(ops.expand_dims(inputs, -1), slot, mask_of_all(inputs, mask=mask))
        logit = ops.cast(inputs, "float32")
        none = self.initial + ops.convert_to_tensor(self.constant)
        if self.slope is not None:
            none = none + ops.convert_to_tensor(self.slope) * ops.log(for_own_rows(_sizes, slot))
        odds, share = for_own_rows(_chosen, logit - none, slot)
        chosen = odds if self.logits else ops.where(slot > 0, ops.sigmoid(odds), ops.zeros_like(odds))
        return (chosen, share) if return_no_choice else chosen

    def compute_output_spec(self, inputs: Any, slot: Any = None, mask: Any = None, return_no_choice: bool = False) -> Any:
        made = [keras.KerasTensor(inputs.shape, dtype="float32") for _ in range(2)]
        return tuple(made) if return_no_choice else made[0]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "no_choice": self.no_choice, "initial": self.initial, "logits": self.logits}


def _sizes(slot: Any) -> Any:
    return Lists.of(slot).size


def _chosen(values: Any, slot: Any) -> tuple[Any, Any]:
    return Lists.of(slot).choice(values)
