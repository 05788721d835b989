"""Tasks of which a request has at most one positive, as probabilities of a choice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from keras_ranking.configuration import as_arguments
from keras_ranking.layers.lists.choice_probability import NO_CHOICE
from keras_ranking.losses.in_request_choice import SEVERAL


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Tasks whose outputs are probabilities of a choice: of the candidates of a request one is chosen, or none.

        P(i) = exp(z_i) / (exp(z_0) + sum_j exp(z_j))          z: logits of the model, with its calibration; see `ChoiceProbability`

    The outputs of the model are log-odds of P, so losses and metrics of logits read them as they read others, and served scores are P.
    `losses_by_task` gives `InRequestChoice`, the likelihood of the choice, for these tasks; terms by pair or list are of the other ones. A
    candidate's score depends on all candidates of its request, so a request is scored in one piece: parts of it are other requests. Our
    choice.

    Attributes:
        choice: the tasks.
        choice_none: the logit of no choice, z_0: 'size': b + a ln(number of candidates), 'constant': b.
        choice_several: in training, of a request with several positives: 'refuse' or 'split', see `InRequestChoice`.

    Raises:
        ValueError: an unknown word, an option without `choice`, or, when the model is built, a task that the model does not have, has
            several towers or offsets by position, is explored or has a random effect.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> model = kr.models.LiRank(log.schema.fit(log.events), kr.models.Choice(choice=["click"], choice_several="split"))
        >>> sorted((task, type(loss).__name__) for task, loss in model.losses_by_task().items())
        [('click', 'InRequestChoice'), ('like', 'ObservedTowerLoss')]
    """

    choice: Sequence[str] = ()
    choice_none: str = "size"
    choice_several: str = "refuse"

    def __post_init__(self) -> None:
        if self.choice_none not in NO_CHOICE:
            raise ValueError(f"`choice_none` must be one of {NO_CHOICE}. Received: choice_none={self.choice_none!r}")
        if self.choice_several not in SEVERAL:
            raise ValueError(f"`choice_several` must be one of {SEVERAL}. Received: choice_several={self.choice_several!r}")
        if not self.choice:
            given = [field.name for field in fields(self) if field.name != "choice" and getattr(self, field.name) != field.default]
            if given:
                raise ValueError(f"`{given[0]}` has no effect without `choice`. Received: choice=()")

    def arguments(self) -> dict[str, Any]:
        """The fields as a saved model holds them: none without a task."""
        return as_arguments(self) if self.choice else {}

    def of(self, tasks: Sequence[str], excluded: Iterable[str] = (), why: str = "") -> Choice:
        """The same with a list of tasks, checked.

        Args:
            tasks: of the model.
            excluded: tasks that cannot be choices, with the reason `why`.
            why: options that exclude them, for the message.

        Raises:
            ValueError: a task that is not of the model, comes twice, or is excluded.
        """
        chosen = list(self.choice)
        if len(set(chosen)) < len(chosen) or any(task not in tasks for task in chosen):
            raise ValueError(f"`choice` must hold tasks of {list(tasks)}, each once. Received: choice={chosen}")
        if wrong := [task for task in chosen if task in excluded]:
            raise ValueError(f"`choice` must hold no task of {why}. Received: {wrong}")
        return replace(self, choice=chosen)
