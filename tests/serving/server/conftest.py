"""A batch of requests with the Keras scores, computed once."""

from __future__ import annotations

import pytest

from tests.serving.calling import expected, requests


@pytest.fixture(scope="session")
def batch(first):
    made = requests(first.card, hostile=False)
    made["want"] = expected(first.model, first.card, made)
    return made


@pytest.fixture
def want(batch):
    return batch["want"]


@pytest.fixture
def inputs(batch):
    return {name: values for name, values in batch.items() if name != "want"}
