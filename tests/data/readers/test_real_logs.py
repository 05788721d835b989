"""Readers on the real logs: numbers of rows, and the ranking quality of the features."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from keras_ranking.data.checks import check_events
from keras_ranking.data.readers import read_ebnerd, read_kuairand, read_movielens, read_retail
from keras_ranking.data.readers.retail_lines import buy_again


@pytest.mark.slow
def test_ebnerd(data_folder):
    log = read_ebnerd(data_folder)
    sizes = log.events["split"].value_counts()
    assert (sizes["train"], sizes["validation"]) == (209_884, 159_537)
    repeated = next(int(note.split()[0]) for note in log.notes if "count once" in note)
    assert log.events.query("split != 'history'")["click"].sum() + repeated == 32_229
    assert 114_651 + 19_092 + sizes["history"] == 378_042
    assert check_events(log.events, log.schema)[1].kept == len(log.events)


@pytest.mark.slow
def test_ebnerd_features_rank_but_do_not_leak(data_folder):
    """Logistic regression on the features has about the AUC of the data's baselines (0.736), and not a much higher one."""
    from sklearn.linear_model import LogisticRegression

    log = read_ebnerd(data_folder)
    train, scored = log.split("train"), log.split("validation")
    train = train[train["time"] >= pd.Timestamp("2023-05-19 07:00:00").timestamp()]
    schema = log.schema.fit(train)

    def encode(rows: pd.DataFrame) -> np.ndarray:
        columns = []
        for feature in schema.features:
            values = feature.encode(rows[feature.name])
            if feature.kind == "number":
                columns.append(values[:, None])
            elif feature.kind == "category":
                columns.append(np.eye(feature.rows)[values])
        return np.concatenate(columns, axis=1)

    model = LogisticRegression(max_iter=500).fit(encode(train), train["click"])
    frame = pd.DataFrame({"score": model.decision_function(encode(scored)), "click": scored["click"], "request": scored["request"]})
    place = frame.groupby("request")["score"].rank()
    clicks, size = frame.groupby("request")["click"].transform("sum"), frame.groupby("request")["click"].transform("size")
    auc = ((place - (clicks + 1) / 2) / (size - clicks))[frame["click"] == 1]
    per_list = auc[size[frame["click"] == 1] > clicks[frame["click"] == 1]].groupby(frame["request"]).mean()
    assert 0.73 < per_list.mean() < 0.75


@pytest.mark.slow
def test_kuairand(data_folder):
    log = read_kuairand(data_folder)
    repeated = int(log.notes[1].split()[0])
    assert len(log.events) == 31_469 - repeated and 71 <= repeated < 100
    assert check_events(log.events, log.schema)[1].kept == len(log.events)


@pytest.mark.slow
def test_movielens(data_folder):
    log = read_movielens(data_folder)
    assert len(log.events) == 100_000 and log.events["liked"].mean() == pytest.approx(0.554, abs=5e-4)
    assert check_events(log.events, log.schema)[1].kept == 100_000


@pytest.mark.slow
def test_movielens_1m(data_folder):
    log = read_movielens(data_folder, release="1m")
    assert len(log.events) == 359_380 and log.events["user_id"].nunique() == 2_238
    assert log.events.duplicated(["user_id", "time"]).mean() == pytest.approx(0.53, abs=0.01)
    assert check_events(log.events, log.schema)[1].kept == 359_380


@pytest.mark.slow
def test_retail(data_folder):
    log = read_retail(data_folder)
    shown = log.events[log.events["split"] != "history"]
    assert len(shown) == 344_131 and shown["bought"].mean() == pytest.approx(0.136, abs=5e-4)
    assert len(log.events) - len(shown) + shown["bought"].sum() == 292_797
    assert check_events(log.events, log.schema)[1].kept == len(log.events)


@pytest.mark.slow
def test_lists_made_of_lines_are_the_lists_of_the_file(data_folder):
    """Lists of the file see invoices of the same minute, and break ties of a minute in another way: 0.3 % of rows differ."""
    lines = pd.read_csv(data_folder / "retail_lines.csv.gz", dtype={"stock_code": str})
    lists = pd.read_csv(data_folder / "retail_again.csv.gz", dtype={"stock_code": str})
    both = lists.merge(buy_again(lines), on=["invoice", "stock_code"])
    assert len(both) / len(lists) > 0.997 and (both["bought_x"] == both["bought_y"]).all()


@pytest.mark.slow
def test_kuairand_pure(data_folder):
    log = read_kuairand(data_folder, release="pure")
    sizes = log.events["split"].value_counts()
    assert sizes["train"] + sizes["validation"] == 166_057 and sizes["history"] == 592_090
    assert check_events(log.events, log.schema)[1].kept == len(log.events)
