"""The logs of `rankers.py`: sets of columns of the peers as columns of a schema, and the training rows alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from peer_features import DAY, Case

from keras_ranking import data
from keras_ranking.columns import Number
from keras_ranking.data import Log


def with_columns(case: Case, features: str) -> Log:
    """The log with the columns of a set as numbers of the context, missing in rows that were not shown; `counts`: without personal ones.

    As the peers' networks get them: logarithms, of both signs, of what is long-tailed, and nothing further than six deviations from the
    mean of the training rows. Where a column is unknown in some rows that were shown, a column of 0 and 1 says so, one for all that
    are unknown in the same rows.
    """
    columns = pd.concat([case.group("plain"), case.group("new")], axis=1) if features == "counts" else case.columns(features)
    columns = columns[[name for name in columns if name not in case.events and not name.startswith(("category_", "genres_"))]]
    trained = (case.events["split"] == "train").to_numpy()[case.shown]
    numbers, kept, unknown = [], {}, set()
    for name in columns:
        values = columns[name].astype(np.float64)
        known = values[trained & values.notna().to_numpy()]
        if not len(known):  # such as the last outcome of a film, which a member rates once
            continue
        if known.abs().max() > 20:
            values, known = (np.sign(each) * np.log1p(each.abs()) for each in (values, known))
        middle, spread = float(known.mean()), float(known.std())
        kept[name] = values.clip(middle - 6 * spread, middle + 6 * spread)
        numbers.append(Number(name, transform="standardise", missing=middle, known="context"))
        absent = values.isna()
        digest = hash(absent.to_numpy().tobytes())
        if absent[trained].mean() > 0.005 and digest not in unknown:
            unknown.add(digest)
            kept[f"{name}_unknown"] = absent.astype(np.float64)
            numbers.append(Number(f"{name}_unknown", missing=1.0, known="context"))
    schema = case.log.schema
    schema = schema.model_copy(update={"features": (*schema.features, *numbers)})
    events = pd.concat([case.events, pd.DataFrame(kept).reindex(case.events.index)], axis=1)
    return replace(case.log, events=events, schema=schema, preset=None)


def of_movielens(case: Case, features: str) -> Log:
    """And each rating's label, the share of five stars, and what each leaves beyond what was expected, as actions of the past."""
    log = with_columns(case, features)
    rows = case.events.assign(stars=(case.events["rating"] - 1) / 4)
    known = {"known_like": rows[case.label].astype(float), "known_stars": rows["stars"]}
    for outcome, name in ((case.label, "residual"), ("stars", "stars_residual")):
        expected = data.RunningExpectation([case.item, case.member], outcome, delay=case.delay).update(rows)
        known[name] = expected[f"{outcome}_residual"]
    actions = (*log.schema.actions, *(Number(name, known="after") for name in known))
    return replace(log, events=log.events.assign(**known), schema=log.schema.model_copy(update={"actions": actions}))


def earlier(log: Log) -> Log:
    """The training rows alone, the last of them as `validation`: of EB-NeRD the last two days, else the last eighth."""
    split, time = log.events["split"].to_numpy(), log.events["time"].to_numpy()
    train = split == "train"
    first, last = time[train].min(), time[train].max()
    begin = first + ((last - first) // DAY - 1) * DAY if log.name.startswith("ebnerd") else np.quantile(time[train], 7 / 8)
    split = np.where(train & (time >= begin), "validation", np.where(train | (split == "history"), split, "test"))
    return replace(log, events=log.events.assign(split=split))
