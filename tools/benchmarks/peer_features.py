"""The logs of the peers' benchmark and the inputs of every peer: sets of point-in-time columns, each made by one function.

A further group of columns is one function of a `Case`, with its name in `GROUPS` and in the sets of `SETS` that shall have it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking import data
from keras_ranking.data import Log
from keras_ranking.data.readers.ebnerd_features import CLICK_PRIOR, HOUR, known_actions

DAY = 86_400
LOGS = ("ebnerd", "movielens-1m", "retail", "kuairand-pure", "simulated")


@dataclass(frozen=True)
class Case:
    """A log with its members held out, and what its columns are to a peer.

    Args:
        name: one of `LOGS`.
        log: of a reader, after `hold_out_members`; `log.events` in order of time.
        holdout: share of the members that are held out.
        label: the task.
        item: the item's id.
        lists: whether rows of one request were a list.
        delay: seconds after which outcomes of others are known.
        own_delay: seconds after which the member's own are.
        prior: of rates.
        keys: columns that items share, for the member's own rates.
        many: column of multi-hot vectors, for the member's own rates.
        amounts: numbers of what was done, of which the first is an amount, where a member takes several items at once; else ().
        chosen: whether what a member did is the rows with a positive label alone; else every row is something done.
        dim: width of the vectors of items.
    """

    name: str
    log: Log
    label: str
    item: str
    lists: bool
    delay: int = 1
    own_delay: int = 1
    prior: tuple[float, float] = (1.0, 5.0)
    keys: tuple[str, ...] = ()
    many: str | None = None
    amounts: tuple[str, ...] = ()
    chosen: bool = False
    dim: int = 32
    holdout: float = 0.25
    made: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are scored."""
        return ("validation", "new_members") if self.holdout else ("validation",)

    @property
    def events(self) -> pd.DataFrame:
        return self.log.events

    @property
    def member(self) -> str:
        return self.log.schema.member

    @property
    def request(self) -> str:
        return self.log.schema.request

    @cached_property
    def shown(self) -> np.ndarray:
        """Rows that were scored: all but the history of the release. Rows of held-out members before the split are among them."""
        return np.asarray(~self.events["from_release"].to_numpy(dtype=bool))

    def group(self, name: str) -> pd.DataFrame:
        """The columns of a group, made once, of the rows that were shown."""
        if name not in self.made:
            self.made[name] = GROUPS[name](self).astype(np.float32)
        return self.made[name]

    def columns(self, features: str) -> pd.DataFrame:
        """The columns of a set; with lists and "relative" also relative to the list, those that vary inside lists."""
        groups = [name for name in SETS[features] if name != "relative"]
        out = pd.concat([self.group(name) for name in groups], axis=1)
        if "relative" not in SETS[features] or not self.lists:
            return out
        request = self.events.loc[self.shown, self.request]
        for name in groups:
            if f"{name} relative" not in self.made:
                own = self.group(name).astype(np.float64)
                grouped = own.groupby(request.to_numpy())
                differs = (grouped.max() > grouped.min()).mean()
                varies = [column for column in own if not column.startswith("category_") and differs[column] > 0.05]
                found = data.list_relative(own.assign(list=request), varies, "list")
                self.made[f"{name} relative"] = found.astype(np.float32)
        out = pd.concat([out, *(self.made[f"{name} relative"] for name in groups)], axis=1)
        return out.loc[:, ~out.columns.duplicated()]  # the reader of EB-NeRD has some ranks already


def open_case(name: str, folder: str | None, holdout: float = 0.25) -> Case:
    """A log by its name, a share of its members held out; 0: none."""
    late, own = {"delay": 600, "own_delay": 600}, {"delay": 120, "own_delay": 120}
    cases: dict[str, Callable[[], tuple[Log, dict[str, Any]]]] = {
        "ebnerd": lambda: (
            data.read_ebnerd(folder),
            {"label": "click", "item": "article_id", "lists": True, "prior": CLICK_PRIOR, "chosen": True, **late},
        ),
        "movielens-1m": lambda: (
            _with_decade(data.read_movielens(folder, release="1m")),
            {"label": "liked", "item": "item_id", "lists": False, "prior": (2.9, 5.0), "keys": ("decade",), "many": "genres"},
        ),
        "retail": lambda: (
            _with_stem(data.read_retail(folder)),
            {
                "label": "bought",
                "item": "stock_code",
                "lists": True,
                "prior": (0.7, 5.0),
                "keys": ("stem",),
                "chosen": True,
                "amounts": ("quantity", "price"),
            },
        ),
        "kuairand-pure": lambda: (
            data.read_kuairand(folder, release="pure"),
            {"label": "long_view", "item": "video_id", "lists": False, "prior": (1.6, 5.0), "keys": ("author_id", "tag", "tab"), **own},
        ),
        "simulated": lambda: (
            data.simulate(members=60, days=4, seed=0),
            {"label": "click", "item": "item_id", "lists": True, "prior": (1.0, 8.0), "keys": ("topic",), "dim": 8, **late},
        ),
    }
    if name not in cases:
        raise SystemExit(f"LOG must be one of {', '.join(LOGS)}. Received: {name}")
    log, settings = cases[name]()
    log = replace(log, events=log.events.assign(from_release=log.events["split"] == "history"))
    return Case(name, data.hold_out_members(log, holdout) if holdout else log, holdout=holdout, **settings)


def _with_decade(log: Log) -> Log:
    return replace(log, events=log.events.assign(decade=log.events["release_year"] // 10))


def _with_stem(log: Log) -> Log:
    return replace(log, events=log.events.assign(stem=log.events["stock_code"].str[:3]))


def _known(case: Case) -> pd.DataFrame:
    """The rows with the label as it was known `delay` later: a click of EB-NeRD comes when its page is left."""
    if "click_after" not in case.events:
        return case.events
    return case.events.assign(click=known_actions(case.events, case.delay)["known_click"])


def plain(case: Case) -> pd.DataFrame:
    """The reader's columns but ids, and counts of item, member and what items share: all time, and 30 days."""
    schema = case.log.schema.fit(case.events[(case.events["split"] == "train").to_numpy()])
    out: dict[str, np.ndarray] = {}
    rows = case.events[case.shown]
    for feature in schema.inputs():
        if feature.kind != "id":
            values = feature.encode(rows[feature.name])
            named = {feature.name: values} if values.ndim == 1 else {f"{feature.name}_{k}": values[:, k] for k in range(values.shape[1])}
            out |= {f"category_{name}" if feature.kind == "category" else name: column for name, column in named.items()}
    parts = [pd.DataFrame(out, index=rows.index)]
    if case.name != "ebnerd":  # its reader has these counts, with windows that suit news
        keys = [case.item, case.member, *case.keys]
        parts.append(_rates(case, keys, "known_"))
        if case.chosen:  # and what was done outside of lists
            windows = [7 * DAY, 30 * DAY, 90 * DAY, None]
            done = (case.events[case.label] == 1).to_numpy()
            counts = data.point_in_time_counts(case.events, keys, windows, (), delay=case.delay, counted=done)
            parts.append(counts[case.shown].add_prefix("done_"))
    return pd.concat(parts, axis=1)


def _rates(case: Case, keys: list[Any], prefix: str, windows: tuple[int | None, ...] = (None, 30 * DAY)) -> pd.DataFrame:
    made = data.point_in_time_counts(_known(case), keys, windows, [case.label], delay=case.delay, prior=case.prior, counted=case.shown)[
        case.shown
    ]
    return made[[name for name in made if "_views_" in name or "_rate_" in name]].add_prefix(prefix)


def personal(case: Case) -> pd.DataFrame:
    """The member's own past: with this item and what it shares, last outcomes, times, and the residuals of similar items."""
    events, own = _known(case), case.own_delay
    done = (events[case.label] == 1).to_numpy() if case.chosen else np.ones(len(events), dtype=bool)
    done = done & events[case.label].notna().to_numpy()
    pairs = [(case.member, key) for key in (case.item, *case.keys)]
    counted = case.shown if case.chosen else done
    rates = data.point_in_time_counts(events, pairs, [None], [case.label], delay=own, prior=case.prior, counted=counted)
    parts = [rates[[name for name in rates if "_views_" in name or "_rate_" in name]]]
    if case.chosen:  # and with what was done outside of lists
        parts.append(data.point_in_time_counts(events, pairs, [None, 90 * DAY], (), delay=own, counted=done).add_prefix("done_"))
    for key in [(case.member,), *pairs]:
        past = data.RunningPast(key, [case.label], last=3 if len(key) == 1 else 1, delay=own).update(events, done)
        parts.append(past[[name for name in past if not case.chosen or name.endswith("_since")]].add_prefix("past_"))
    if case.chosen:
        last = data.RunningPast(case.member, [case.label], last=3, delay=own).update(events, case.shown)
        parts.append(last.drop(columns=f"{case.member}_seconds_since").add_prefix("shown_"))
    if case.many:
        parts.append(_own_rates_of_many(case, events))
    parts.append(similar_residuals(case, events, done))
    return pd.concat(parts, axis=1)[case.shown]


def visits(case: Case) -> pd.DataFrame:
    """Where a member takes several items at once: the rhythm and the size of visits, and of buying this item."""
    if not case.amounts:
        return pd.DataFrame(index=case.events.index[case.shown])
    events = case.events.fillna(dict.fromkeys(case.amounts, 0.0))
    done = (events[case.label] == 1).to_numpy()
    pair = (case.member, case.item)
    quantity = case.amounts[0]
    parts = [
        data.RunningMoments(case.member, [quantity], delay=case.own_delay).update(events, done).add_prefix("visit_"),
        data.RunningMoments(pair, [quantity], delay=case.own_delay).update(events, done).add_prefix("again_"),
        data.RunningMoments(case.member, [case.label], delay=case.own_delay).update(events, case.shown).add_prefix("list_"),
        data.RunningPast(pair, list(case.amounts), last=1, delay=case.own_delay).update(events, done).iloc[:, 1:].add_prefix("again_"),
    ]
    return pd.concat(parts, axis=1)[case.shown]


def _own_rates_of_many(case: Case, events: pd.DataFrame) -> pd.DataFrame:
    """The member's own rate of each word of a multi-hot column, as mean, least and most over the words of the row's item."""
    row, word = np.nonzero(np.stack(events[case.many].to_list()))
    long = events[[case.member, "time", case.label]].iloc[row].reset_index(drop=True).assign(word=word)
    key = (case.member, "word")
    made = data.point_in_time_counts(long, [key], [None], [case.label], delay=case.own_delay, prior=case.prior)
    views, rate = made[f"{case.member}_word_views_all"], made[f"{case.member}_word_{case.label}_rate_all"]
    grouped, least = rate.groupby(row), views.groupby(row)
    found = {"mean": grouped.mean(), "least": grouped.min(), "most": grouped.max(), "views": least.mean()}
    return pd.DataFrame(
        {f"own_{case.many}_{name}": values.reindex(range(len(events))).to_numpy() for name, values in found.items()}
    ).set_axis(events.index)


def similar_residuals(case: Case, events: pd.DataFrame, done: np.ndarray, blocks: int = 12, shrink: float = 10.0) -> pd.DataFrame:
    """Sum of the member's earlier residuals, each weighted by how its item goes with the row's item.

    Residuals are outcomes minus what the rates of item and member said then. In each of `blocks` parts of the log the similarities are
    the shrunk correlations of residuals, A'A / (sqrt(QQ') + shrink), over members, of rows before the part alone.
    """
    if case.name == "ebnerd":  # its articles live for a day
        return pd.DataFrame(index=events.index)
    expected = data.RunningExpectation([case.item, case.member], case.label, delay=case.delay)
    counted = case.shown if case.chosen else done
    residual = np.nan_to_num(expected.update(events, counted)[f"{case.label}_residual"].to_numpy())
    members, items = pd.factorize(events[case.member])[0], pd.factorize(events[case.item])[0]
    time, read = events["time"].to_numpy(), done | case.shown
    total, weights = np.zeros(len(events)), np.zeros(len(events))
    edges = np.quantile(time, np.linspace(0, 1, blocks + 1)[1:-1]).astype(np.int64)
    block = np.searchsorted(edges, time, side="right")
    by_member = pd.Series(np.flatnonzero(read)).groupby(members[read]).indices
    rows_of = {member: np.flatnonzero(read)[places] for member, places in by_member.items()}
    for number in range(1, blocks):
        before = read & (time < edges[number - 1] - case.delay)
        similar = _correlations(members[before], items[before], residual[before], members.max() + 1, items.max() + 1, shrink)
        for rows in rows_of.values():
            wanted = rows[(block[rows] == number) & case.shown[rows]]
            past = rows[time[rows] < edges[number] if number < blocks - 1 else slice(None)][-500:] if len(wanted) else wanted
            if len(wanted) and len(past):
                seen = time[past][None, :] <= time[wanted][:, None] - case.own_delay
                weight = np.where(seen, similar[items[wanted][:, None], items[past][None, :]], 0.0)
                total[wanted], weights[wanted] = weight @ residual[past], np.abs(weight).sum(axis=1)
    return pd.DataFrame({"similar_sum": total, "similar_mean": total / (weights + 1.0), "similar_weight": weights}, index=events.index)


def _correlations(member: np.ndarray, item: np.ndarray, residual: np.ndarray, members: int, items: int, shrink: float) -> np.ndarray:
    from scipy import sparse

    shape = (members, items)
    table = sparse.csr_matrix((residual.astype(np.float32), (member, item)), shape=shape)
    marks = sparse.csr_matrix((np.ones(len(item), dtype=np.float32), (member, item)), shape=shape)
    marks.data[:] = 1.0
    together, squares = (table.T @ table).toarray(), (table.multiply(table).T @ marks).toarray()
    together /= np.sqrt(squares * squares.T) + shrink
    np.fill_diagonal(together, 0.0)
    return together


def choice_counts(shown: pd.DataFrame, item: str, request: str, outcome: str, delay: int, prior: tuple[float, float]) -> pd.DataFrame:
    """Point-in-time columns of the item, of the rows of lists: short windows, strengths, and rates corrected for exposure."""
    strengths = data.ChoiceStrengths(item, request, outcome=outcome, delay=delay).update(shown)
    known = shown.assign(share=strengths[f"{item}_{outcome}_share"])
    short = data.point_in_time_counts(known, item, [HOUR // 4, 3 * HOUR], [outcome], delay=delay, prior=prior)
    parts = [short[[name for name in short if "_views_" in name or "_rate_" in name]], strengths]
    for expected in ("list_size", "share"):
        parts.append(
            data.exposure_corrected_rates(known, item, [3 * HOUR, None], outcome=outcome, expected=expected, request=request, delay=delay)
        )
    return pd.concat(parts, axis=1)


def new_counts(case: Case) -> pd.DataFrame:
    """The package's counts that know the list; without lists, the expectation of the rates of item and member."""
    if not case.lists:
        expected = data.RunningExpectation([case.item, case.member], case.label, delay=case.delay).update(case.events, case.shown)
        return expected.loc[case.shown, [f"{case.label}_expected"]]
    rows = _known(case)[case.shown]
    return choice_counts(rows, case.item, case.request, case.label, case.delay, case.prior)


def fold_in(case: Case) -> pd.DataFrame:
    """How member and item fit by vectors of items, fitted before the first training row that has these columns.

    Of a log with a history (EB-NeRD) on the history; else on the first two fifths of the training rows, which get no values.
    """
    events, train, dim = _known(case), (case.events["split"] == "train").to_numpy(), case.dim
    share = 0.0 if case.name == "ebnerd" else 0.4
    cut = int(np.quantile(events["time"].to_numpy()[train], share, method="lower"))
    if case.lists:
        rows = events[case.shown]
        strengths = data.ChoiceStrengths(case.item, case.request, outcome=case.label, delay=case.delay).update(rows)
        events = events.assign(expected=strengths.iloc[:, 1].reindex(events.index))
    else:
        expected = data.RunningExpectation([case.item, case.member], case.label, delay=case.delay).update(events, case.shown)
        events = events.assign(expected=expected.iloc[:, 0], residual=expected.iloc[:, 1])
    before = events[(events["time"] < cut - case.delay).to_numpy()]
    if case.chosen:
        factors = data.item_factors(before[before[case.label] == 1], case.member, case.item, case.label, dim=dim)
    else:
        kind, value = ("taken", case.label) if case.lists else ("residual", "residual")
        factors = data.item_factors(before, case.member, case.item, value, dim=dim, kind=kind)
    options = {"outcome": case.label, "expected": "expected", "delay": case.delay, "own_delay": case.own_delay}
    found = data.FoldIn(factors, case.member, **options, vectors=True).update(events, case.shown)[case.shown]
    of_member = found[[f"{case.member}_vector_{part}" for part in range(dim)]].to_numpy()
    match = (of_member * factors.of_rows(events[case.shown])[0]).sum(axis=1)
    out = found.iloc[:, :2].assign(member_item_match=match).add_prefix("fold_in_")
    out[(events.loc[case.shown, "time"] < cut).to_numpy()] = np.nan
    return out


# A further group of columns goes here.
GROUPS: dict[str, Callable[[Case], pd.DataFrame]] = {
    "plain": plain,
    "personal": personal,
    "visits": visits,
    "new": new_counts,
    "fold_in": fold_in,
}
SETS: dict[str, tuple[str, ...]] = {
    "plain": ("plain",),
    "relative": ("plain", "relative"),
    "personal": ("plain", "personal", "visits", "relative"),
    "new": ("plain", "personal", "visits", "new", "relative"),
    "fold_in": ("plain", "personal", "visits", "new", "fold_in", "relative"),
}


def sets_of(case: Case) -> list[str]:
    """The sets that differ on this log: "relative" needs lists."""
    return [name for name in SETS if case.lists or name != "relative"]
