"""The kernels for GPUs, tested without a GPU: Pallas in its interpreter and lowered for CUDA, flex_attention uncompiled and for the CPU.

The same float64 reference and tolerances as in test_span_attention.py.
"""

from __future__ import annotations

import shutil

import keras
import numpy as np
import pytest

from keras_ranking.ops import Spans, candidate_attention, span_attention
from keras_ranking.ops.backends import reference
from tests.ops.support import EXACT, check, differentiate, distance, every, masks, numpy_spans, operands, packed_rows

BACKEND = keras.backend.backend()
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="Pallas is JAX's")
on_torch = pytest.mark.skipif(BACKEND != "torch", reason="flex_attention is torch's")
TRITON = "__gpu$xla.gpu.triton"  # the custom call of a Triton kernel
ROWS = 300  # more than two blocks of queries, the last one partial


# -- Pallas -----------------------------------------------------------------------------------------------------------------------


@on_jax
@pytest.mark.parametrize("mean", [20, 600])
def test_pallas_on_every_mask_with_grouped_heads(rng, mean):
    for spans in masks(rng, 2, ROWS, mean).values():
        check("pallas", operands(rng, 2, ROWS, ROWS, 4, 2, 8), spans)


@pytest.mark.few(2)
@on_jax
@pytest.mark.parametrize("seed", range(6))
def test_pallas_on_any_spans(seed):
    """Integers without any order, partly outside the row; every second seed far from the diagonal."""
    rng = np.random.default_rng(seed)
    spread = 400 if seed % 2 else 30
    index = np.arange(ROWS)[None]
    spans = Spans(*((index + rng.integers(-spread, spread + 1, (2, ROWS))).astype("int32") for _ in range(3)))
    check("pallas", operands(rng, 2, ROWS, ROWS, 4, 2, 8), spans)


@pytest.mark.few(2)
@on_jax
@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "size"), [(1, 4), (17, 3), (128, 80), (129, 256)])
def test_pallas_on_lengths_and_head_sizes(rng, tokens, size):
    check("pallas", operands(rng, 1, tokens, tokens, 2, 1, size), Spans.causal(np.ones((1, tokens), "int32")))


@on_jax
def test_pallas_on_requests_and_in_cross_form(rng):
    lengths = np.array([200, 0, 37], "int32")
    check("pallas", operands(rng, 3, 270, 270, 2, 2, 8), Spans.candidates(lengths, 200, 70))
    check("pallas", operands(rng, 3, 9, 200, 2, 1, 8), Spans.history_only(lengths, 9))


@on_jax
@pytest.mark.parametrize("kernel", ["pallas", "library"])
def test_pallas_with_stride_two(rng, kernel):
    for spans in masks(rng, 2, ROWS, 50).values():
        check(kernel, operands(rng, 2, ROWS // 2, ROWS, 4, 2, 8), every(spans, 2), stride=2)
    # The first two queries see the same keys as in plain causal rows, except for the own key of the second.
    check(kernel, operands(rng, 1, 2, 4, 2, 2, 8), Spans(*np.array([[[0, 0]], [[0, 2]], [[0, 2]]], "int32")), stride=2)


@on_jax
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_pallas_with_any_value_in_unseen_keys(rng, poison):
    segments = packed_rows(rng, 2, ROWS, 20)[0]
    spans = Spans.delayed(np.zeros_like(segments), 1, segments)
    arrays = operands(rng, 2, ROWS, ROWS, 4, 2, 8)
    padding = segments == 0
    dirty = [np.where(padding[:, :, None, None], np.float32(poison), part) for part in arrays]

    def run(parts):
        *inputs, upstream = parts
        return differentiate(lambda q, k, v: span_attention(q, k, v, spans, kernel="pallas"), inputs, upstream)

    (clean, grads), (out, dirty_grads) = run(arrays), run(dirty)
    for one, other in zip((clean, *grads), (out, *dirty_grads), strict=True):
        np.testing.assert_array_equal(one, other)
    arrays[2][tuple(np.argwhere(~padding)[0])] = poison  # control: a visible key has an effect
    assert not np.isfinite(run(arrays)[0]).all()


@on_jax
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 2e-2), ("float16", 3e-3)])
def test_pallas_in_half_precision(rng, dtype, bound):
    rounded = [keras.ops.cast(part, dtype) for part in operands(rng, 2, ROWS, ROWS, 4, 2, 8)[:3]]
    exact = [np.asarray(keras.ops.cast(part, "float32")) for part in rounded]
    spans = masks(rng, 2, ROWS, 20)["delayed"]
    out = span_attention(*rounded, spans, kernel="pallas")
    wanted = reference.span_attention(*exact, numpy_spans(spans))
    assert out.dtype == dtype
    assert distance(np.asarray(keras.ops.cast(out, "float32")), wanted) < bound


@pytest.mark.few(4)
@on_jax
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [8, 64, 128, 256])
def test_pallas_lowers_for_cuda(dtype, size):
    """Every operation of the kernels has a Triton form; needs no GPU. Control: the program of the interpreter has no Triton call."""
    import jax

    from keras_ranking.ops.backends import jax_pallas

    queries, keys = (jax.ShapeDtypeStruct((2, 300, heads, size), dtype) for heads in (4, 2))
    part, total = jax.ShapeDtypeStruct((2, 300), "int32"), jax.ShapeDtypeStruct((2, 300, 4), "float32")

    def lowered(function, *inputs, platform="cuda"):
        return jax.jit(function).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()

    given = (queries, keys, keys, part, part, part)
    assert lowered(lambda *inputs: jax_pallas.forward(0.1, 1, *inputs), *given).count(TRITON) == 1
    text = lowered(lambda *inputs: jax_pallas.backward(0.1, 1, *inputs), *given, queries, total, queries, total)
    assert text.count(TRITON) == 2
    assert "triton" not in lowered(lambda *inputs: jax_pallas.forward(0.1, 1, *inputs, interpret=True), *given, platform="cpu")


@on_jax
def test_nothing_of_pallas_grows_with_the_square_of_the_length():
    import jax

    from keras_ranking.ops.backends import jax_pallas

    def largest(tokens):
        rows, part = jax.ShapeDtypeStruct((1, tokens, 1, 16), "float32"), jax.ShapeDtypeStruct((1, tokens), "int32")
        total = jax.ShapeDtypeStruct((1, tokens, 1), "float32")
        operands = (rows, rows, rows, part, part, part, rows, total, rows, total)
        jaxpr = jax.make_jaxpr(lambda *inputs: jax_pallas.backward(1.0, 1, *inputs))(*operands)
        return max(int(np.prod(out.aval.shape)) for equation in jaxpr.eqns for out in equation.outvars)

    assert largest(8192) == 2 * largest(4096)


@on_jax
@pytest.mark.parametrize("rows", ["plain", "strict", "packed"])
def test_library_kernel_is_used_only_for_plain_causal_rows(rng, rows):
    segments = np.ones((2, 96), "int32")
    if rows == "packed":
        segments[:, 40:] = 2
    spans = Spans.causal(segments, own=rows != "strict")
    check("library", operands(rng, 2, 96, 96, 4, 2, 8), spans)
    from keras_ranking.ops.backends import jax as kernels

    assert bool(kernels._plain(np.zeros((2, 96, 1, 1)), *numpy_spans(spans))) == (rows == "plain")


@on_jax
def test_library_kernel_detects_plain_causal_rows(rng):
    """Against the dense mask, for spans of every kind."""
    from keras_ranking.ops.backends import jax as kernels

    causal = np.tril(np.ones((12, 12), bool))
    found = []
    for _ in range(3000):
        index = np.arange(12)[None]
        start, own = rng.choice([-1, 0, 1], 2, p=[0.1, 0.8, 0.1])
        end = index + rng.integers(-1, 3)
        spans = Spans(np.full((1, 12), start), end, np.where(rng.random() < 0.5, index + rng.integers(0, 2), own) + 0 * index)
        claimed = bool(kernels._plain(np.zeros((1, 12, 1, 1)), *spans))
        found.append((claimed, bool((reference.visible(*spans, num_keys=12)[0] == causal).all())))
    assert not [one for one in found if one == (True, False)]
    assert (True, True) in found and (False, False) in found


# -- flex_attention -----------------------------------------------------------------------------------------------------------------


def torch_spans(spans):
    import torch

    return Spans(*(torch.as_tensor(part) for part in numpy_spans(spans)))


@on_torch
@pytest.mark.parametrize("mean", [20, 600])
def test_flex_blocks_are_those_of_the_dense_mask(rng, mean):
    """Partial and full blocks contain all visible pairs; full blocks contain no hidden pair; for monotone masks both are exact."""
    from keras_ranking.ops.backends import torch_flex

    for name, spans in masks(rng, 2, ROWS, mean).items():
        parts = torch_flex.intervals(torch_spans(spans), ROWS)
        reached, full = (part.numpy() for part in torch_flex._blocks(parts, ROWS))
        dense = reference.visible(*numpy_spans(spans), num_keys=ROWS)
        more = -ROWS % torch_flex.BLOCK
        blocks = np.pad(dense, ((0, 0), (0, more), (0, more))).reshape(2, 3, 128, 3, 128)
        np.testing.assert_array_equal(reached, blocks.any((2, 4)), err_msg=name)
        rows = np.pad(dense, ((0, 0), (0, more), (0, 0)), constant_values=True)
        whole = np.pad(rows, ((0, 0), (0, 0), (0, more))).reshape(2, 3, 128, 3, 128).all((2, 4))
        assert not (full & ~whole).any(), name
        mask = torch_flex.make_mask(torch_spans(spans), ROWS)
        np.testing.assert_array_equal(mask.blocks.to_dense()[:, 0].numpy() > 0, reached, err_msg=name)
        np.testing.assert_array_equal(mask.seen.numpy(), dense.any(1), err_msg=name)
        np.testing.assert_array_equal(mask.some.numpy(), dense.any(2), err_msg=name)


@on_torch
def test_flex_blocks_with_stride_two(rng):
    import torch

    from keras_ranking.ops.backends import torch_flex

    for name, spans in masks(rng, 2, ROWS, 50).items():
        asking = every(spans, 2)
        mask = torch_flex.make_mask(torch_spans(asking), ROWS, 2)
        dense = reference.visible(*numpy_spans(asking), num_keys=ROWS, stride=2)
        np.testing.assert_array_equal(mask.seen.numpy(), dense.any(1), err_msg=name)
        np.testing.assert_array_equal(mask.some.numpy(), dense.any(2), err_msg=name)
        row, query, key = (index.reshape(-1) for index in np.indices(dense.shape))
        visible = mask.blocks.mask_mod(*map(torch.as_tensor, (row, 0 * row, query, key)))
        np.testing.assert_array_equal(visible.numpy().reshape(dense.shape), dense, err_msg=name)


@on_torch
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_rules_equal_the_reference(rng):
    """Uncompiled: the rule for single pairs, the softmax's sum, and the rows set to zero."""
    import torch

    from keras_ranking.ops.backends import torch as kernels, torch_flex

    for spans in masks(rng, 2, ROWS, 50).values():
        arrays = operands(rng, 2, ROWS, ROWS, 4, 2, 8)[:3]
        mask = torch_flex.make_mask(torch_spans(spans), ROWS)
        seen = mask.seen.numpy()
        dirty = [arrays[0], *(np.where(seen[:, :, None, None], part, np.float32(np.nan)) for part in arrays[1:])]
        tensors = [torch.as_tensor(part) for part in dirty]
        out, total = torch_flex.attend(*tensors, mask, 0.3, need_total=True, compiled=False)
        assert distance(out.numpy(), reference.span_attention(*arrays, numpy_spans(spans), 0.3)) < EXACT
        _, by_tiles = kernels._attend(
            False,
            *(torch.as_tensor(np.repeat(part, 4 // part.shape[2], axis=2)).transpose(1, 2) for part in arrays),
            False,
            torch.where(torch.as_tensor(reference.visible(*numpy_spans(spans), num_keys=ROWS)), 0.0, float("-inf"))[:, None],
            0.3,
        )
        np.testing.assert_allclose(total.numpy(), by_tiles.transpose(1, 2).numpy(), rtol=1e-5, atol=1e-5)


@on_torch
def test_flex_uses_sdpa_for_plain_rows(rng):
    from keras_ranking.ops.backends import torch_flex

    ones = np.ones((2, 70), "int32")
    for spans, kind in ((Spans.causal(ones), "causal"), (Spans.bidirectional(ones), "full"), (Spans.causal(ones, own=False), "")):
        assert torch_flex.make_mask(torch_spans(spans), 70).plain == kind
        if kind:
            check("flex", operands(rng, 2, 70, 70, 4, 2, 8), spans)
    assert torch_flex.make_mask(torch_spans(Spans.causal(np.repeat([[1, 2]], 35, axis=1).astype("int32"))), 70).plain == ""


@pytest.mark.release
@on_torch
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile for the CPU needs a C++ compiler")
def test_flex_compiles(rng):
    import torch

    spans = torch_spans(masks(rng, 2, ROWS, 50)["delayed"])
    arrays = operands(rng, 2, ROWS, ROWS, 4, 2, 16)[:3]
    with torch.no_grad():
        out = span_attention(*map(torch.as_tensor, arrays), spans, kernel="flex")
    assert distance(out.numpy(), reference.span_attention(*arrays, numpy_spans(spans))) < EXACT


@on_torch
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_candidates_with_an_own_key(rng):
    """The kernel for candidates on a GPU, uncompiled, against the kernel of the CPU."""
    import torch

    from keras_ranking.ops.backends import torch as kernels, torch_flex

    lengths = np.array([40, 0, 13], "int32")
    shapes = [(3, 20, 4, 8), (3, 40, 2, 8), (3, 40, 2, 8), (3, 20, 2, 8), (3, 20, 2, 8)]
    query, key, value, own_key, own_value = (torch.as_tensor(rng.standard_normal(shape).astype("float32")) for shape in shapes)
    mask = torch_flex.make_mask(Spans.history_only(torch.as_tensor(lengths), 20), 40)
    out, total = torch_flex.attend(query, key, value, mask, 0.3, need_total=True, compiled=False)
    joined = kernels._join_rows(query, out, total, own_key, own_value, 0.3)
    wanted = candidate_attention(query, key, value, lengths, own_key, own_value, scale=0.3)
    assert distance(joined.numpy(), wanted.numpy()) < EXACT
