"""A small log of EB-NeRD, read once."""

from __future__ import annotations

import pandas as pd
import pytest

from keras_ranking.data.readers import Log, read_ebnerd
from tests.data.readers.ebnerd_files import small_ebnerd, write


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> tuple[Log, pd.DataFrame, pd.DataFrame]:
    behaviors, history = small_ebnerd()
    return read_ebnerd(write(tmp_path_factory.mktemp("ebnerd"), behaviors, history), tasks=("click", "long_dwell")), behaviors, history
