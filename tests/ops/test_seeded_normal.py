"""A counter-based normal, against numpy on unsigned words."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.ops.seeded_normal import seeded_normal, threefry


def numpy(tensor: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


def words(key: tuple[Any, Any], counter: tuple[Any, Any], rounds: int) -> tuple[np.ndarray, np.ndarray]:
    k = [np.asarray(part, np.uint32) for part in key]
    k.append(k[0] ^ k[1] ^ np.uint32(0x1BD11BDA))
    x, y = (np.asarray(part, np.uint32) + k[i] for i, part in enumerate(counter))
    for i in range(rounds):
        x = x + y
        turn = np.uint32([13, 15, 26, 6, 17, 29, 16, 24][i % 8])
        y = ((y << turn) | (y >> (np.uint32(32) - turn))) ^ x
        if i % 4 == 3:
            s = i // 4 + 1
            x, y = x + k[s % 3], y + k[(s + 1) % 3] + np.uint32(s)
    return x, y


def normals(seed: np.ndarray, width: int, stream: int) -> np.ndarray:
    place = np.arange((width + 1) // 2, dtype=np.uint32)
    with np.errstate(over="ignore"):
        a, b = words((seed.astype(np.int32).view(np.uint32)[:, None], [stream]), (place, 0 * place), 20)
    u, v = (((x >> np.uint32(8)).astype("float64") + 0.5) / 2**24 for x in (a, b))
    radius = np.sqrt(-2 * np.log(u))
    return np.concatenate([radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)], axis=1)[:, :width]


@pytest.mark.parametrize(
    ("counter", "key", "rounds", "want"),
    [
        # the published test values of Random123, the library of the paper's authors
        ((0, 0), (0, 0), 20, (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 2, 20, (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), 20, (0xC4923A9C, 0x483DF7A0)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), 13, (0xBA3E4725, 0xF27D669E)),
    ],
)
def test_threefry(counter: tuple[int, int], key: tuple[int, int], rounds: int, want: tuple[int, int]) -> None:
    def tensor(word: int) -> Any:
        return keras.ops.convert_to_tensor(np.array([word], np.uint32).view(np.int32))

    got = threefry((tensor(key[0]), tensor(key[1])), (tensor(counter[0]), tensor(counter[1])), rounds)
    assert tuple(int(numpy(word).view(np.uint32)[0]) for word in got) == want


def test_draws_are_those_of_numpy() -> None:
    """So all backends agree: words to the bit, normal numbers to the rounding of ln and cos."""
    seed = np.array([0, 1, -1, 2**31 - 1, -(2**31), 12345], "int32")
    for width, stream in ((1, 0), (7, 9), (64, 2**32 - 1)):
        np.testing.assert_allclose(numpy(seeded_normal(seed, width, stream)), normals(seed, width, stream), rtol=2e-5, atol=3e-6)


def test_draws_are_standard_normal() -> None:
    """Consecutive seeds are the hardest case; bounds are 4.5 standard errors."""
    n, width = 40_000, 7
    draws = numpy(seeded_normal(np.arange(n, dtype="int32"), width, 5)).astype("float64")
    other = numpy(seeded_normal(np.arange(n, dtype="int32"), width, 6)).astype("float64")
    assert np.isfinite(draws).all()
    assert np.abs(draws).max() < 5.9
    for power, moment, spread in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert np.abs((draws**power).mean(0) - moment).max() < 4.5 * spread / n**0.5, power
    bound = 4.5 / n**0.5
    assert np.abs(np.corrcoef(draws.T) - np.eye(width)).max() < bound  # places
    assert np.abs(np.corrcoef((draws**2).T) - np.eye(width)).max() < bound  # the halves of a Box-Muller pair
    for lag in (1, 2, 256):
        assert np.abs((draws[lag:] * draws[:-lag]).mean(0)).max() < bound * 1.1  # seeds
    assert np.abs((draws * other).mean(0)).max() < bound  # streams
    sign = (draws > 0).mean(0)
    assert np.abs(sign - 0.5).max() < bound / 2
