"""Random numbers that are a function of a seed: the same on every backend, inside and outside a graph."""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from keras_ranking.ops.integers import int32

ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
PARITY = 0x1BD11BDA


def _signed(word: int) -> int:
    """The int32 with the bits of a 32-bit word."""
    return (word & 0xFFFFFFFF) - ((word & 0x80000000) << 1)


def threefry(key: tuple[Any, Any], counter: tuple[Any, Any], rounds: int = 20) -> tuple[Any, Any]:
    """Threefry-2x32 (Salmon et al. 2011): two random 32-bit words for a key and a counter, without a state.

    Computed in int32, with sums that wrap around and bits read as unsigned: JAX, TensorFlow and torch give the same bits, also in a
    graph. torch has no complete uint32 arithmetic.

    Args:
        key, counter: pairs of int32 tensors that broadcast.
        rounds: 20, as in the paper and in JAX; the authors found that 13 pass BigCrush.
    """
    keys = (*key, ops.bitwise_xor(ops.bitwise_xor(*key), int32(_signed(PARITY))))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for i in range(rounds):
        x = x + y
        turn = ROTATIONS[i % 8]
        # The shift to the right copies the sign; the mask clears the copies.
        carried = ops.bitwise_and(ops.right_shift(y, int32(32 - turn)), int32((1 << turn) - 1))
        turned = ops.bitwise_or(ops.left_shift(y, int32(turn)), carried)
        y = ops.bitwise_xor(turned, x)
        if i % 4 == 3:
            block = i // 4 + 1
            x, y = x + keys[block % 3], y + keys[(block + 1) % 3] + block
    return x, y


def seeded_normal(seed: Any, width: int, stream: int = 0) -> Any:
    """Standard normal numbers that depend only on the seed, the stream and the index: float32 (B, width) for int32 (B,).

        (a, b) = threefry((seed, stream), (j, 0)),   r = sqrt(-2 ln u_a),   (r cos 2 pi u_b, r sin 2 pi u_b)        Box-Muller

    u are the upper 24 bits of a word: no number is larger than 5.9. Backends differ by the rounding of ln and cos, some 1e-6.
    """
    pairs = -(-width // 2)
    place = ops.arange(pairs, dtype="int32")
    key = ops.cast(ops.expand_dims(seed, -1), "int32")
    word = ops.full((1,), _signed(stream), dtype="int32")
    a, b = threefry((key, word), (place, ops.zeros_like(place)))
    bits = (ops.bitwise_and(ops.right_shift(x, int32(8)), int32(0xFFFFFF)) for x in (a, b))
    u, v = ((ops.cast(x, "float32") + 0.5) * 2.0**-24 for x in bits)
    radius, angle = ops.sqrt(-2.0 * ops.log(u)), 2.0 * math.pi * v
    return ops.concatenate([radius * ops.cos(angle), radius * ops.sin(angle)], axis=-1)[:, :width]
