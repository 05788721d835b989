"""Packed targets: stacking, the observed tower, windows."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from keras_ranking.losses import largest_request, observed_tower, position_bucket, targets
from tests.losses.helpers import chosen, random_batch, value_and_gradient


def test_targets_are_stacked_in_the_documented_order() -> None:
    packed = targets([[1, 0]], position=[[3, 1]], request=[[7, 7]])
    assert packed.dtype == np.float32
    np.testing.assert_array_equal(packed, [[[1, 3, 7], [0, 1, 7]]])


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("position", "request_", "message"),
    [
        ([[0.5, 1]], [[1, 1]], "`position` must hold whole numbers"),
        ([[-1, 1]], [[1, 1]], r"Received: -1.0 at \(0, 0\)"),
        ([[1, 2]], [[1, 2**24 + 1]], "`request` must hold whole numbers"),
        ([[1, np.nan]], [[1, 1]], r"Received: nan at \(0, 1\)"),
        ([[1, 2, 3]], [[1, 1]], "`position` must have the shape of `label`"),
    ],
)
def test_invalid_targets_are_errors(position: list, request_: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        targets([[1, 0]], position=position, request=request_)


def test_position_buckets() -> None:
    found = ops.convert_to_numpy(position_bucket(np.array([0, 1, 2, 3, 4, 5, 100]), (1, 4)))
    np.testing.assert_array_equal(found, [0, 0, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(ops.convert_to_numpy(position_bucket(np.array([0, 9]))), [0, 0])


@pytest.mark.parametrize("boundaries", [(), (3,), (1, 4)])
def test_the_observed_tower_is_selected(boundaries: tuple[int, ...]) -> None:
    y_true, logits, _, plain = random_batch(np.random.default_rng(1), towers=len(boundaries) + 1)
    label, logit, bucket, request = (ops.convert_to_numpy(x) for x in observed_tower(y_true, logits, boundaries))
    np.testing.assert_array_equal(label, plain[..., 0])
    np.testing.assert_array_equal(request, plain[..., 2])
    np.testing.assert_array_equal(logit, chosen(plain, logits, boundaries).astype(np.float32))
    np.testing.assert_array_equal(bucket, sum((plain[..., 1] > b).astype(int) for b in boundaries) + np.zeros(label.shape, int))


def test_no_gradient_reaches_an_unobserved_tower_even_if_it_overflowed() -> None:
    y_true, logits, _, plain = random_batch(np.random.default_rng(2))
    observed = np.zeros(logits.shape, dtype=bool)
    for b, t in np.ndindex(logits.shape[:2]):
        observed[b, t, int(plain[b, t, 1] > 1) + int(plain[b, t, 1] > 4)] = True
    logits[~observed] = np.inf

    value, gradient = value_and_gradient(lambda x: ops.sum(ops.square(observed_tower(y_true, x, (1, 4))[1])), logits)
    assert np.isfinite(value)
    assert np.all(gradient[~observed] == 0)
    assert np.all(gradient[observed] != 0)
    # Control: selection by multiplication with 0 and 1 gives NaN.
    one_hot = ops.convert_to_tensor(observed.astype(np.float32))
    naive, _ = value_and_gradient(lambda x: ops.sum(ops.square(ops.sum(x * one_hot, axis=-1))), logits)
    assert not np.isfinite(naive)


def test_bfloat16_logits_do_not_round_the_requests() -> None:
    y_true = targets([[1, 0]], request=[[256, 257]])
    logits = ops.cast(np.zeros((1, 2, 1), dtype=np.float32), "bfloat16")
    request = ops.convert_to_numpy(observed_tower(y_true, logits)[3])
    assert request[0, 0] != request[0, 1]
    # Control: a cast of the whole tensor would merge the two requests.
    rounded = ops.convert_to_numpy(ops.cast(ops.cast(y_true, "bfloat16"), "float32"))[..., 2]
    assert rounded[0, 0] == rounded[0, 1]


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("true_shape", "pred_shape", "boundaries", "message"),
    [
        ((2, 5, 3), (2, 5, 2), (1, 4), r"K = len\(boundaries\) \+ 1 = 3"),
        ((2, 5, 2), (2, 5, 1), (), "packed targets"),
        ((2, 5, 3), (2, 6, 1), (), "the same tokens"),
        ((2, 5, 3), (2, 5, 3), (4, 1), "`boundaries` must be increasing"),
        ((2, 5, 3), (2, 5, 2), (0,), "`boundaries` must be increasing positive"),
        ((2, 5, 3), (2, 5, 2), (1.5,), "`boundaries` must be increasing positive"),
    ],
)
def test_wrong_shapes_and_boundaries_are_named(true_shape: tuple, pred_shape: tuple, boundaries: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        observed_tower(np.zeros(true_shape, np.float32), np.zeros(pred_shape, np.float32), boundaries)


def test_largest_request_is_the_longest_stretch_of_weighted_tokens() -> None:
    y_true = targets(np.zeros((2, 6)), request=[[1, 1, 2, 2, 2, 3], [1, 2, 2, 2, 2, 2]])
    assert largest_request(y_true) == 5
    weight = np.ones((2, 6))
    weight[1, [1, 2]] = 0
    assert largest_request(y_true, weight) == 3
    weight[1, 3] = 0
    weight[1, 1] = 1  # the request now spans tokens of weight 0
    assert largest_request(y_true, weight) == 5
    assert largest_request(y_true, np.zeros((2, 6))) == 0
    with pytest.raises(ValueError, match="packed targets"):
        largest_request(np.zeros((2, 6)))
