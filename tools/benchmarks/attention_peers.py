"""The backends of `attention.py`: operands, a forward call, a training call, and the other implementations of attention."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from attention_workloads import LONGEST_DENSE, Workload, numpy_parts


class Torch:
    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        torch.set_num_threads(args.threads)
        self.torch, self.args = torch, args
        self.device = "cuda" if args.device == "gpu" else "cpu"
        self.dtype = getattr(torch, args.dtype)
        self.forms = ("torch",)

    def tensor(self, values: np.ndarray) -> Any:
        tensor = self.torch.as_tensor(values, device=self.device)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def forward(self, function: Callable[..., Any], form: str) -> Callable[..., Any]:
        def call(*tensors: Any) -> Any:
            with self.torch.no_grad():
                out = function(*tensors)
            return self.wait(out)

        return call

    def train(self, function: Callable[..., Any], upstream: Any, form: str) -> Callable[..., Any]:
        def call(*tensors: Any) -> Any:
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            function(*leaves).backward(upstream)
            return self.wait(leaves[0].grad)

        return call

    def wait(self, out: Any) -> Any:
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return out

    def peers(self, load: Workload, mode: str) -> dict[str, tuple[str, Callable[..., Any]]]:
        """name -> (layout of its operands, function). Layouts: 'rows', unchanged; 'padded', one segment per row."""
        torch = self.torch
        attend = torch.nn.functional.scaled_dot_product_attention

        def heads_first(q: Any, k: Any, v: Any, **options: Any) -> Any:
            return attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **options).transpose(1, 2)

        found: dict[str, tuple[str, Callable[..., Any]]] = {}
        if load.name.startswith("W1"):
            found["SDPA causal"] = ("rows", lambda q, k, v: heads_first(q, k, v, is_causal=True))
            if self.device == "cuda":
                from torch.nn.attention import SDPBackend, sdpa_kernel

                def cudnn(q: Any, k: Any, v: Any) -> Any:
                    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                        return heads_first(q, k, v, is_causal=True)

                found["SDPA cuDNN"] = ("rows", cudnn)
        mask = self.tensor(load.mask())[:, None] if load.tokens <= LONGEST_DENSE else None
        if mask is not None:
            found["SDPA dense mask"] = ("rows", lambda q, k, v: heads_first(q, k, v, attn_mask=mask))
        if load.tokens <= 2048:  # T x T x heads scores in float32 do not fit into memory at 8192
            import keras

            found["keras.ops dense mask"] = ("rows", lambda q, k, v: keras.ops.dot_product_attention(q, k, v, mask=mask))
        if load.packed:
            if load.name == "W2":
                found["SDPA padded"] = ("padded", lambda q, k, v: heads_first(q, k, v, is_causal=True))
                edges = list(zip(load.bounds[:-1], load.bounds[1:], strict=True))

                def loop(q: Any, k: Any, v: Any) -> Any:
                    return torch.cat([heads_first(q[:, a:b], k[:, a:b], v[:, a:b], is_causal=True) for a, b in edges], dim=1)

                found["SDPA segment loop"] = ("rows", loop)
            else:
                visible = self.tensor(load.padded_mask())[:, None]
                visible[:, :, :, 0] |= ~visible.any(-1)  # padding rows must see a key
                found["SDPA padded"] = ("padded", lambda q, k, v: heads_first(q, k, v, attn_mask=visible))
        if self.args.flex and (mode == "forward" or self.device == "cuda"):
            found["flex_attention"] = ("rows", self.flex(load))
        return found

    def flex(self, load: Workload) -> Callable[..., Any]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        start, end, own = (self.tensor(part) for part in numpy_parts(load.spans()))

        def visible(b: Any, h: Any, i: Any, j: Any) -> Any:
            return ((j >= start[b, i]) & (j < end[b, i])) | ((j >= own[b, i]) & (j <= i))

        blocks = create_block_mask(visible, load.batch, None, load.tokens, load.tokens, device=self.device)
        compiled = self.torch.compile(flex_attention)
        return lambda q, k, v: compiled(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=blocks).transpose(1, 2)


class TensorFlow:
    def __init__(self, args: argparse.Namespace) -> None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(args.threads)
        tf.config.threading.set_inter_op_parallelism_threads(args.threads)
        self.tf, self.dtype = tf, getattr(tf, args.dtype)
        self.forms = tuple(args.forms)

    def tensor(self, values: np.ndarray) -> Any:
        tensor = self.tf.constant(values)
        return self.tf.cast(tensor, self.dtype) if tensor.dtype.is_floating else tensor

    def forward(self, function: Callable[..., Any], form: str) -> Callable[..., Any]:
        return self.tf.function(function, jit_compile=form == "xla", autograph=False)

    def train(self, function: Callable[..., Any], upstream: Any, form: str) -> Callable[..., Any]:
        tf = self.tf

        def step(*tensors: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                out = function(*tensors)
            # The output too, as a model needs it: unused results are removed from a graph.
            return [*tape.gradient(out, tensors, output_gradients=upstream), out]

        return tf.function(step, jit_compile=form == "xla", autograph=False)

    def peers(self, load: Workload, mode: str) -> dict[str, tuple[str, Callable[..., Any]]]:
        return keras_peers(self, load)


class Jax:
    def __init__(self, args: argparse.Namespace) -> None:
        import jax

        self.jax, self.dtype, self.args = jax, getattr(jax.numpy, args.dtype), args
        self.forms = ("jit",)

    def tensor(self, values: np.ndarray) -> Any:
        tensor = self.jax.numpy.asarray(values)
        return tensor.astype(self.dtype) if tensor.dtype.kind == "f" else tensor

    def forward(self, function: Callable[..., Any], form: str) -> Callable[..., Any]:
        compiled = self.jax.jit(function)
        return lambda *tensors: compiled(*tensors).block_until_ready()

    def train(self, function: Callable[..., Any], upstream: Any, form: str) -> Callable[..., Any]:
        step = self.jax.jit(lambda *tensors: self.jax.vjp(function, *tensors)[1](upstream))
        return lambda *tensors: self.jax.block_until_ready(step(*tensors))

    def peers(self, load: Workload, mode: str) -> dict[str, tuple[str, Callable[..., Any]]]:
        attend = self.jax.nn.dot_product_attention
        implementations = ("xla", "cudnn") if self.args.device == "gpu" else ("xla",)
        found: dict[str, tuple[str, Callable[..., Any]]] = {}
        for kind in implementations:
            if load.name.startswith("W1"):
                found[f"jax.nn causal ({kind})"] = ("rows", lambda q, k, v, kind=kind: attend(q, k, v, is_causal=True, implementation=kind))
            layout, mask = ("padded", load.padded_mask()) if load.packed else ("rows", load.mask())
            held = self.tensor(mask)[:, None]
            name = f"jax.nn {'padded' if load.packed else 'mask'} ({kind})"
            found[name] = (layout, lambda q, k, v, kind=kind, held=held: attend(q, k, v, mask=held, implementation=kind))
        return found


def keras_peers(machine: Any, load: Workload) -> dict[str, tuple[str, Callable[..., Any]]]:
    import keras

    layout, mask = ("padded", load.padded_mask()) if load.packed else ("rows", load.mask())
    held = machine.tensor(mask)[:, None]
    name = f"keras.ops {'padded' if load.packed else 'dense mask'}"
    return {name: (layout, lambda q, k, v: keras.ops.dot_product_attention(q, k, v, mask=held))}


def torch_request(load: Workload, arrays: list[np.ndarray], args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The request of W3 with torch's dense mask, to compare with TensorFlow; empty if torch is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(args.threads)
    q, k, v = (torch.as_tensor(part).to(getattr(torch, args.dtype)).transpose(1, 2) for part in arrays[:3])
    mask = torch.as_tensor(load.mask())[:, None]
    return {"torch SDPA dense mask": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)}
