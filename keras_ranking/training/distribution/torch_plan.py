"""Several processes of torch, as `torchrun` starts them: each has the whole model and a part of each batch, and gradients are added up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import distributed

from keras_ranking.ops.messages import shown
from keras_ranking.ops.replicas import added_up
from keras_ranking.optimizers.summed import apply_sums
from keras_ranking.training.distribution.choice import refused
from keras_ranking.training.distribution.plan import ByTurns, Plan

_JAX = "Use JAX, `KERAS_BACKEND=jax`: there `keras.distribution` has it."


def plan(distribution: Any) -> Plan:
    """See `keras_ranking.training.distribution.plan_for`."""
    if distribution == "tables":
        raise refused("distribution='tables'", "torch", _JAX)
    if distribution != "data":
        raise refused(f"`distribution`: {shown(distribution)}", "torch", f"distribution='data' under torchrun does. {_JAX}")
    if not distributed.is_available():
        raise ValueError("distribution='data' on torch needs a torch with torch.distributed.")
    if not distributed.is_initialized():
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            raise ValueError(
                "distribution='data' on torch is a training in several processes. Start it with `torchrun --nproc-per-node=N`, "
                "N the number of GPUs of the machine."
            )
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return TorchPlan(distributed.get_rank(), distributed.get_world_size())


class TorchPlan(ByTurns):
    """The processes of torch's default group."""

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__(rank, ranks, _gathered)
        self.parts, self.own = ranks, (rank, rank + 1)

    @contextlib.contextmanager
    def devices(self) -> Iterator[None]:
        with added_up():
            yield

    def describe(self, dataset: Any, ranker: Any) -> str:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        return f"{self.ranks} process{'es' if self.ranks > 1 else ''} of torch on {kind}: {self.rows(dataset)}; gradients are added up"

    def prepare(self, ranker: Any) -> None:
        with torch.no_grad():
            for variable in ranker.variables:
                distributed.broadcast(variable.value.data, 0)
        apply_sums(ranker.optimizer)


def _gathered(array: np.ndarray) -> list[np.ndarray]:
    sent = torch.from_numpy(np.frombuffer(np.ascontiguousarray(array).tobytes(), dtype=np.uint8).copy())
    if distributed.get_backend() == "nccl":
        sent = sent.cuda()
    found = [torch.empty_like(sent) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, sent)
    return [np.frombuffer(one.cpu().numpy().tobytes(), dtype=array.dtype).reshape(array.shape) for one in found]
