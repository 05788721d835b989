"""Weights of a LiGR layer of PyTorch, by their names, in a `LiGRBlock`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_ranking.layers.attention.ligr_block import LiGRBlock

_NORM, _GATE = "layer_norm_1.weight", "gating_linear_1.weight"


def load_ligr_weights(block: LiGRBlock, weights: Mapping[str, Any], prefix: str = "") -> None:
    """Loads the weights of a LiGR layer of PyTorch into a block, so that both have the same outputs.

    The names are those of RecTools' `LiGRLayer`: attention is a `torch.nn.MultiheadAttention`, and a linear map of PyTorch has a matrix
    (outputs, inputs), which is transposed here.

    | name, after `prefix`                       | shape              | in the block                                         |
    |--------------------------------------------|--------------------|------------------------------------------------------|
    | `layer_norm_1.weight`, `.bias`             | (D,)               | norm before attention                                |
    | `multi_head_attn.in_proj_weight`           | (3 D, D)           | query, key and value, one below the other            |
    | `multi_head_attn.in_proj_bias`             | (3 D,)             | their biases, with `qkv_bias`                        |
    | `multi_head_attn.out_proj.weight`, `.bias` | (D, D), (D,)       | output map; its bias with `qkv_bias`                 |
    | `gating_linear_1.weight`, `.bias`          | (D, D), (D,)       | gate of attention, with `gate` and `use_bias`        |
    | `layer_norm_2.weight`, `.bias`             | (D,)               | norm before the SwiGLU                               |
    | `feed_forward.ff_linear_1.weight`          | (H, D)             | W_1, which has the activation                        |
    | `feed_forward.ff_linear_3.weight`          | (H, D)             | W_3                                                  |
    | `feed_forward.ff_linear_2.weight`          | (D, H)             | W_2                                                  |
    | `feed_forward.ff_linear_{1,2,3}.bias`      | (H,), (D,), (H,)   | their biases, with `ffn_bias`                        |
    | `gating_linear_2.weight`, `.bias`          | (D, D), (D,)       | gate of the SwiGLU, with `gate` and `use_bias`       |

    What is not in the weights must be the same in both: the number of heads, `epsilon` (1e-5 in PyTorch), the activation, and the mask.

    Args:
        block: to load into, `LiGRBlock(H, D // H, rotary=None, qkv_bias=True, epsilon=1e-5, ...)`; built for the width of the weights if it
            is not built yet.
        weights: name -> array or tensor, as from `layer.state_dict()`.
        prefix: what the names of this layer begin with, such as 'transformer_blocks.0.'; other names are left alone.

    Raises:
        ValueError: a block with a rotation, which that layer does not have; or names that are missing, names without a place in this
            block, and shapes that do not fit, all of them in one message. The block then keeps its weights.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> shapes = {"multi_head_attn.in_proj_weight": (24, 8), "multi_head_attn.in_proj_bias": (24,)}
        >>> shapes |= {f"multi_head_attn.out_proj.{name}": shape for name, shape in (("weight", (8, 8)), ("bias", (8,)))}
        >>> shapes |= {f"layer_norm_{i}.{name}": (8,) for i in (1, 2) for name in ("weight", "bias")}
        >>> shapes |= {f"gating_linear_{i}.{name}": shape for i in (1, 2) for name, shape in (("weight", (8, 8)), ("bias", (8,)))}
        >>> shapes |= {f"feed_forward.ff_linear_{i}.weight": (8, 32) if i == 2 else (32, 8) for i in (1, 2, 3)}
        >>> weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        >>> block = kr.layers.LiGRBlock(num_heads=2, head_dim=4, rotary=None, qkv_bias=True, epsilon=1e-5)
        >>> kr.layers.load_ligr_weights(block, weights)
        >>> kr.layers.load_ligr_weights(block, {**weights, "layer_norm_1.scale": np.ones(8)})
        Traceback (most recent call last):
        ValueError: the weights do not fit this LiGRBlock. Without a place here: ['layer_norm_1.scale'].
    """
    if block.attention.rotate is not None:
        raise ValueError(
            f"a LiGR layer of PyTorch has no rotation: make the block with rotary=None. Received: rotary={block.attention.rotary}"
        )
    given = {name.removeprefix(prefix): _array(value) for name, value in weights.items() if name.startswith(prefix)}
    if not block.built:
        if _NORM not in given:
            raise ValueError(f"`weights` must have '{prefix}{_NORM}', which gives the width. Received: {sorted(weights)[:10]}")
        block.build((None, None, given[_NORM].size))
    places = _places(block)
    missing = [prefix + name for name in places if name not in given]
    extra = [prefix + name for name in given if name not in places]
    shapes = {name: _shape(variables) for name, variables in places.items()}
    wrong = [
        f"'{prefix}{name}' {given[name].shape} in place of {shape}"
        for name, shape in shapes.items()
        if name in given and given[name].shape != shape
    ]
    if missing or extra or wrong:
        found = {"Missing": missing, "Without a place here": extra}
        parts = [f"{kind}: {names}" for kind, names in found.items() if names] + ([f"Shapes: {', '.join(wrong)}"] if wrong else [])
        raise ValueError(f"the weights do not fit this LiGRBlock. {'; '.join(parts)}.{_hint(block, missing, extra, prefix)}")
    for name, variables in places.items():
        ends = np.cumsum([variable.shape[-1] for variable in variables])[:-1]
        for variable, part in zip(variables, np.split(given[name], ends, axis=0), strict=True):
            variable.assign(part.T)


def _array(value: Any) -> np.ndarray:
    """Of a tensor of PyTorch of any dtype and device, or of anything that is an array."""
    return np.asarray(value.detach().cpu().double() if hasattr(value, "detach") else value, dtype="float64")


def _places(block: LiGRBlock) -> dict[str, list[Any]]:
    """Name in PyTorch -> the variables that it fills, one below the other."""
    attention, ffn = block.attention, block.feed.sublayer
    projections = [attention.query, attention.key, attention.value]
    places: dict[str, list[Any]] = {"multi_head_attn.in_proj_weight": [layer.kernel for layer in projections]}
    if attention.qkv_bias:
        places["multi_head_attn.in_proj_bias"] = [layer.bias for layer in projections]
    linear = {"multi_head_attn.out_proj": attention.output_map}
    linear |= {f"feed_forward.ff_linear_{number}": layer for number, layer in ((1, ffn.gate), (2, ffn.down), (3, ffn.up))}
    for number, half in ((1, block.attend), (2, block.feed)):
        places |= {f"layer_norm_{number}.weight": [half.norm.gamma], f"layer_norm_{number}.bias": [half.norm.beta]}
        linear |= {} if half.gate_map is None else {f"gating_linear_{number}": half.gate_map}
    for name, layer in linear.items():
        places[f"{name}.weight"] = [layer.kernel]
        if layer.use_bias:
            places[f"{name}.bias"] = [layer.bias]
    return places


def _shape(variables: list[Any]) -> tuple[int, ...]:
    """Shape in PyTorch of variables one below the other: outputs first."""
    return (sum(variable.shape[-1] for variable in variables), *(int(size) for size in variables[0].shape[:-1]))


def _hint(block: LiGRBlock, missing: list[str], extra: list[str], prefix: str) -> str:
    """Which arguments of the block would have these names, or would not."""
    names = {name.removeprefix(prefix) for name in (*missing, *extra)}
    kinds = {
        "qkv_bias": "multi_head_attn.in_proj_bias" in names,
        "ffn_bias": any(name.startswith("feed_forward.") and name.endswith(".bias") for name in names),
        "gate": _GATE in names,
        "use_bias": "gating_linear_1.bias" in names and _GATE not in names,
    }
    asked = [f"{name}={not getattr(block.attention if name == 'qkv_bias' else block, name)}" for name, is_so in kinds.items() if is_so]
    return f" A block with {' and '.join(asked)} has other names." if asked else ""
