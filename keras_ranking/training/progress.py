"""Where a training is: steps and epochs counted, checkpoints written at intervals and on Ctrl-C, and the rest of a begun epoch."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import keras

from keras_ranking.training.checkpoint import checkpoint_writer, write_whole
from keras_ranking.training.distribution.plan import active
from keras_ranking.training.validation import Validation
from keras_ranking.training.weight_average import WeightAverage


class Interrupt:
    """Inside, the first Ctrl-C is remembered, and a second one acts at once.

    Attributes:
        asked: whether there was one.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        main = threading.current_thread() is threading.main_thread()
        if main and callable(signal.getsignal(signal.SIGINT)):  # not where it is ignored, or not Python's
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping after this step, with a checkpoint; press Ctrl-C again to stop without one", file=sys.stderr, flush=True)


class Progress(keras.callbacks.Callback):
    """Counts steps, writes a checkpoint at intervals, and on torch sets the seed of each step.

    Args:
        path: file to write; None: none.
        every: steps between checkpoints; None: at the ends of epochs only.
        about: further entries of the checkpoint.
        seed: of the run.
        batches: number of batches in an epoch.
        resumed: `state()` of the run to resume; None: a new run.
        validation: whose best state is in the checkpoint too.
        average: which is in the checkpoint too.
    """

    def __init__(
        self,
        path: Path | None,
        every: int | None,
        about: Mapping[str, Any],
        seed: int,
        batches: int,
        resumed: Mapping[str, Any] | None = None,
        validation: Validation | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        super().__init__()
        self.plan = active()
        self.validation, self.average, self.interrupt = validation, average, Interrupt()
        self.path, self.every, self.about, self.seed, self.batches = path, every, dict(about), seed, batches
        state = resumed or {"epoch": 0, "batch": 0, "step": 0, "losses": {}, "epochs": {}}
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.before = dict(state["losses"])  # means over the first `begun` batches of the epoch
        self.begun = self.batch
        self.epochs = {name: list(values) for name, values in state["epochs"].items()}
        self.means: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """Progress of the run, for the checkpoint."""
        return {"epoch": self.epoch, "batch": self.batch, "step": self.step, "losses": self.means, "epochs": self.epochs}

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if keras.backend.backend() == "torch":
            keras.utils.set_random_seed((self.seed * 1_000_003 + self.step + self.plan.rank * 998_244_353) % 2**32)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batch, self.step = self.batch + 1, self.step + 1
        # Not before the last step of an epoch: with one batch left, `fit` on JAX and torch would take the batch that it reads to build
        # the losses for a whole epoch.
        due = self.every is not None and self.step % self.every == 0
        # Several processes must stop after the same step: they ask one another where all write a checkpoint.
        asked = self.interrupt.asked if self.plan.ranks == 1 else due and self._asked()
        if (due or asked) and self.batch < self.batches - 1:
            self.means = self._whole(logs)
            self._write()
            self._stop_if_asked()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for name, value in self._whole(logs).items():
            self.epochs.setdefault(name, []).append(value)
        self.epoch, self.batch, self.begun, self.before, self.means = self.epoch + 1, 0, 0, {}, {}
        self._asked()
        self._write()
        self._stop_if_asked()

    def _asked(self) -> bool:
        """Whether there was a Ctrl-C, in any of the processes."""
        self.interrupt.asked = self.plan.anywhere(self.interrupt.asked)
        return self.interrupt.asked

    def _stop_if_asked(self) -> None:
        if self.path is not None and self.interrupt.asked:
            folder = str(self.path.parent)
            print(
                f"stopped in epoch {self.epoch + 1} after {self.step} steps; to go on: `train(..., out={folder!r}, resume=True)` with the "
                f"same arguments, or `keras-ranking train --data SOURCE --resume {folder}`",
                file=sys.stderr,
                flush=True,
            )
            raise KeyboardInterrupt

    def _whole(self, logs: Any) -> dict[str, float]:
        """Means over the epoch so far; Keras has those since the run was resumed."""
        now = {name: float(value) for name, value in (logs or {}).items()}
        if not self.begun:
            return now
        share = self.begun / max(self.batch, 1)
        means = {name: share * self.before[name] + (1 - share) * value for name, value in now.items() if name in self.before}
        return means | {name: value for name, value in now.items() if self.validation is not None and name in self.validation.names}

    def _write(self) -> None:
        if self.path is not None and (self.every is not None or self.interrupt.asked):
            best = None if self.validation is None else self.validation.kept
            average = None if self.average is None else self.average.arrays()
            write = checkpoint_writer(self.model, {**self.about, "finished": False, "progress": self.state()}, best, average)
            if self.plan.writes:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_whole({self.path: write})


class Rest(keras.utils.PyDataset):
    """The batches of an epoch from `first` on.

    `fit` reads one or two batches before the first epoch, to learn shapes, and then calls on_epoch_end. So the data moves to its next
    epoch only after an epoch that was begun and read to its end. With one batch the two cases look the same (see `Progress`).
    """

    def __init__(self, dataset: Any, first: int) -> None:
        super().__init__()
        self.dataset, self.first = dataset, first
        self.begun, self.read = False, 0

    def __len__(self) -> int:
        return len(self.dataset) - self.first

    def __getitem__(self, batch: int) -> Any:
        self.read += 1
        return self.dataset[self.first + batch]

    def on_epoch_begin(self) -> None:
        self.begun, self.read = True, 0
        self.dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        if self.begun and self.read >= len(self):
            self.dataset.next_epoch()
        self.begun = False
