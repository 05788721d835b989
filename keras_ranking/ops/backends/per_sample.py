"""Gradients of the loss of each single sample. Only the active backend is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

Tensors = list[Any]
# (values, offsets, fixed, one sample without its batch axis) -> (scalar loss, further tensors)
Loss = Callable[[Tensors, Tensors, Tensors, Tensors], tuple[Any, Tensors]]
# (gradients by values, by offsets, further tensors, each (N, ...); counted (N,)) -> the reduced result
Reduce = Callable[[Tensors, Tensors, Tensors, Any], Any]
# (values, offsets, fixed, samples with their batch axis, counted) -> the result of `Reduce`
Step = Callable[[Tensors, Tensors, Tensors, Tensors, Any], Any]


def per_sample_step(loss: Loss, reduce: Reduce, vectorized: bool) -> Step:
    """One function, compiled if the backend compiles, from N samples to the result of `reduce` on their gradients.

    Args:
        loss: of one sample, differentiated with respect to `values` and `offsets`; `fixed` is data.
        reduce: function of the gradients of all N samples.
        vectorized: all samples at once. If False, N must be 1: plain differentiation, which every operation supports.
    """
    return {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[keras.backend.backend()](loss, reduce, vectorized)


def _only(samples: Tensors) -> Tensors:
    return [part[0] for part in samples]


def _jax(loss: Loss, reduce: Reduce, vectorized: bool) -> Step:
    import jax

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)

    def step(values: Tensors, offsets: Tensors, fixed: Tensors, samples: Tensors, counted: Any) -> Any:
        if vectorized:
            (by_value, by_offset), kept = jax.vmap(gradient, in_axes=(None, None, None, 0))(values, offsets, fixed, samples)
        else:
            found = gradient(values, offsets, fixed, _only(samples))
            (by_value, by_offset), kept = jax.tree_util.tree_map(lambda part: part[None], found)
        return reduce(by_value, by_offset, kept, counted)

    compiled: Step = jax.jit(step)
    return compiled


def _torch(loss: Loss, reduce: Reduce, vectorized: bool) -> Step:
    import torch

    def plain(values: Tensors, offsets: Tensors, fixed: Tensors, samples: Tensors) -> tuple[tuple[Tensors, Tensors], Tensors]:
        # Not torch.func: it does not accept autograd functions whose `forward` has a `ctx` argument, as in the kernels.
        wanted = [part.detach().requires_grad_() for part in (*values, *offsets)]
        with torch.enable_grad():
            value, kept = loss(wanted[: len(values)], wanted[len(values) :], fixed, _only(samples))
        found = torch.autograd.grad(value, wanted, allow_unused=True) if value.requires_grad else [None] * len(wanted)
        grads = [torch.zeros_like(part)[None] if grad is None else grad[None] for part, grad in zip(wanted, found)]
        return (grads[: len(values)], grads[len(values) :]), [part.detach()[None] for part in kept]

    together = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1), has_aux=True), in_dims=(None, None, None, 0), randomness="different")

    def step(values: Tensors, offsets: Tensors, fixed: Tensors, samples: Tensors, counted: Any) -> Any:
        values, fixed = ([part.detach() for part in parts] for parts in (values, fixed))
        (by_value, by_offset), kept = (together if vectorized else plain)(values, offsets, fixed, samples)
        with torch.no_grad():
            return reduce(by_value, by_offset, kept, counted)

    return step


def _tensorflow(loss: Loss, reduce: Reduce, vectorized: bool) -> Step:
    import tensorflow as tf

    def step(values: Tensors, offsets: Tensors, fixed: Tensors, samples: Tensors, counted: Any) -> Any:
        def gradient(sample: Tensors) -> tuple[Tensors, Tensors, Tensors]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([*values, *offsets])
                value, kept = loss(values, offsets, fixed, sample)
            found = tape.gradient(value, [*values, *offsets], unconnected_gradients=tf.UnconnectedGradients.ZERO)
            dense = [tf.convert_to_tensor(part) for part in found]
            return dense[: len(values)], dense[len(values) :], kept

        if vectorized:
            by_value, by_offset, kept = tf.vectorized_map(gradient, samples, fallback_to_while_loop=False)
        else:
            by_value, by_offset, kept = tf.nest.map_structure(lambda part: part[None], gradient(_only(samples)))
        return reduce(by_value, by_offset, kept, counted)

    compiled: Step = tf.function(step, autograph=False)
    return compiled
