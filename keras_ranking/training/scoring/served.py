"""Probabilities of logged events as serving computes them, to compare with offline ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from keras_ranking.data import RequestDataset, Requests, Sequences, requests
from keras_ranking.data.sequences import require_sequences
from keras_ranking.models import RankingModel
from keras_ranking.utility import SCORE


def predict_served(
    ranker: RankingModel, sequences: Sequences, whole_session: bool | None = None, max_history: int | None = None, batch_size: int = 64
) -> dict[str, np.ndarray]:
    """Probabilities of every target event by task, (E,), NaN for the others, from the serving graph.

    The history of a request has the member's events before it. With `whole_session`, the events of the request's own session are left
    out: a feed scores the candidates of a session before any of its actions are known. A model that was trained to read them has
    worse metrics here than offline (`predict_events`); the difference is the effect of in-session leakage.

    Args:
        ranker: any model of this package.
        sequences: from `build_sequences` with the model's schema.
        whole_session: leave out the events of the request's session; False: only those of the request's own second and later. None: True
            where the schema has a session.
        max_history: the newest events kept; None: all.
        batch_size: requests per step.

    Returns:
        By task, and `score` for a model with a utility, float64 (E,).

    Raises:
        TypeError: `sequences` are not `Sequences`.
        ValueError: `whole_session=True` with a schema without a session.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> model = kr.models.LiRank(schema, history_features=())
        >>> found = kr.training.predict_served(model, kr.data.build_sequences(log.events, schema))
        >>> found["click"].shape == (len(log.events),)
        True
    """
    require_sequences(sequences)
    found = served_requests(sequences, whole_session, max_history)
    return {task: np.where(sequences.target, values, np.nan) for task, values in served_scores(ranker, found, batch_size).items()}


def served_requests(sequences: Sequences, whole_session: bool | None = None, max_history: int | None = None) -> Requests:
    """Requests with the history that a service has of them: see `predict_served`."""
    found = requests(sequences, max_history=None)
    end = found.history_end
    if whole_session or (whole_session is None and sequences.session is not None):
        if sequences.session is None:
            raise ValueError("`whole_session=True` needs a schema with a session. Received: session=None")
        codes, first = np.unique(sequences.session, return_index=True)
        end = np.minimum(end, first[np.searchsorted(codes, sequences.session[found.candidate_begin])])
    begin = np.minimum(found.history_begin, end)
    if max_history is not None:
        begin = np.maximum(begin, end - max_history)
    return replace(found, history_begin=begin, history_end=end)


def served_scores(ranker: RankingModel, found: Requests, batch_size: int) -> dict[str, np.ndarray]:
    """What the serving graph returns for the candidates of requests.

    Args:
        ranker: any model of this package.
        found: requests.
        batch_size: of a step.

    Returns:
        By task that is served, and `score` of a model with a utility, float64 (E,) for the events of `found.sequences`; NaN for those
        that are no candidate.
    """
    graph = ranker.serving_model
    # Auxiliary tasks are trained but not served.
    scored = [*ranker.tasks, *([SCORE] if ranker.utility else [])]
    out = {task: np.full(found.sequences.num_events, np.nan) for task in scored if task in graph.output}
    if not len(found):
        return out
    dataset = RequestDataset(found, batch_size, names=list(graph.input))
    for batch in range(len(dataset)):
        which = np.arange(batch * batch_size, min((batch + 1) * batch_size, len(found)))
        index = found.candidate_index(which, dataset.candidates)
        # All steps have as many requests: another number for the last one would need a compilation.
        filled = np.pad(which, (0, batch_size - len(which)), constant_values=-1)
        tensors = found.tensors(filled, dataset.names, history=dataset.length(batch), candidates=dataset.candidates)
        scores = graph.predict_on_batch(tensors)
        for task, values in out.items():
            values[index[index >= 0]] = np.asarray(scores[task])[: len(which)][index >= 0]
    return out
