"""Online Retail: which of a customer's earlier items an invoice has again (Chen, Sain, Guo, 2012, doi:10.1057/dbm.2012.17)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from keras_ranking.columns import Category, Id, Number, Task
from keras_ranking.data.counts import point_in_time_counts
from keras_ranking.data.readers.cuts import cut_by_time
from keras_ranking.data.readers.log import HISTORY, Log, find_file
from keras_ranking.data.readers.retail_lines import buy_again, release_lines
from keras_ranking.data.readers.tables import at_rows, earlier_counts, read_table
from keras_ranking.schema import Schema

_LISTS = "retail_again.csv*"
_RELEASE = ("Online Retail.xlsx", "Online Retail.csv*", "[Oo]nline_[Rr]etail*.csv*", "OnlineRetail.csv*", "online_retail*.xlsx")
_AGAIN = ["invoice", "customer_id", "timestamp", "stock_code", "bought"]
_LINES = ["invoice", "customer_id", "timestamp", "stock_code", "quantity", "unit_price"]
_PRIOR = (3.0, 20.0)  # of the rates: about one candidate in seven is bought
_DAY = 86_400


def retail_schema(delay: int = 1) -> Schema:
    """The schema of `read_retail`."""
    logged = ("user_views", "item_views", "item_sales_28d", "item_sales", "list_size", "user_invoices")
    return Schema(
        member="customer_id",
        time="time",
        request="request_id",
        features=(
            Id(name="stock_code", buckets=8192),
            Number(name="price", transform="log1p_standardise", missing=2.0),
            *(Number(name=name, transform="standardise", known="context") for name in ("user_buy_rate", "item_buy_rate")),
            *(Number(name=name, transform="log1p_standardise", known="context") for name in logged),
            Number(name="gap", transform="log1p_standardise", missing=30.0 * _DAY, known="context"),
            Category(name="hour", vocabulary=tuple(map(str, range(24))), known="context"),
            Category(name="weekday", vocabulary=tuple(map(str, range(7))), known="context"),
        ),
        actions=(Number(name="bought"), Number(name="quantity", transform="log1p_standardise")),
        tasks=(Task(name="bought"),),
        feedback_delay=delay,
    )


def read_retail(folder: str | Path, delay: int = 1, validation_share: float = 0.2, list_size: int = 40) -> Log:
    """Read Online Retail as "buy again" lists: task `bought`, whether an item bought before is in the invoice.

    Reads `retail_again.csv.gz` (lists), `retail_lines.csv.gz` (all lines of invoices) and, where it is there, `retail_items.csv.gz`
    (descriptions); or the release, `Online Retail.xlsx` (needs openpyxl) or the same as csv, and makes the lists of it: for each invoice
    of a customer with earlier ones, the `list_size` items bought most recently before it. Nobody was shown these lists: outcomes are
    real, the lists are made. Of the release, lines without a customer, cancelled ones, and codes that are no product (postage, fees)
    are left out, lines of one invoice and product are one, and `log.notes` has the numbers.

    One row per item of a list; an invoice is one request. Lines that are no row of a list are rows with split "history" (bought = 1),
    each its own request with a negative id.

    | feature | meaning, over earlier seconds |
    |---|---|
    | `price` | unit price of the item's latest line of anyone; of a history row, its own |
    | `user_views`, `item_views`, `user_buy_rate`, `item_buy_rate` | rows of lists, and share bought, (bought + 3) / (rows + 20) |
    | `item_sales`, `item_sales_28d` | lines of the item, and of the last 28 days |
    | `list_size`, `user_invoices`, `gap` | items in the list, earlier invoices of the customer, seconds since the last |
    | `hour`, `weekday` | of the invoice, 0 is Monday |

    Args:
        folder: where the files are.
        delay: seconds after which a line is counted, at least 1; also the schema's `feedback_delay`.
        validation_share: the last requests by time, this share of all, are "validation".
        list_size: longest list that is made of the release.

    Returns:
        `Log` with the name "retail".

    Raises:
        FileNotFoundError: no such folder or file.
        ImportError: an .xlsx file without openpyxl.
        ValueError: a missing column, or a share outside (0, 1).

    Example:
        >>> columns = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID"]
        >>> rows = [(1, "22423", "CAKESTAND", 2, "2010-12-01 08:00", 12.75, 7), (1, "22720", "TIN", 1, "2010-12-01 08:00", 4.95, 7)]
        >>> rows += [(2, "22423", "CAKESTAND", 1, "2010-12-09 09:30", 10.95, 7)]
        >>> pd.DataFrame(rows, columns=columns).to_csv("Online Retail.csv", index=False)
        >>> log = kr.data.read_retail(".")
        >>> log.events.query("split != 'history'")[["stock_code", "bought", "price"]].values.tolist()
        [['22720', 0, 4.95], ['22423', 1, 12.75]]
    """
    if not 0 < validation_share < 1:
        raise ValueError(f"`validation_share` must be between 0 and 1. Received: validation_share={validation_share}")
    if list_size < 1:
        raise ValueError(f"`list_size` must be a positive integer. Received: list_size={list_size}")
    notes: list[str] = []
    first = find_file(folder, (_LISTS, *_RELEASE), "Online Retail lists (retail_again) or lines")
    if first.name.startswith("retail_again"):
        lists = read_table(first, _AGAIN, dtype={"stock_code": str})
        lines_at = find_file(folder, ["retail_lines.csv*"], "Online Retail lines")
        lines = read_table(lines_at, _LINES, dtype={"stock_code": str})
        items = sorted(first.parent.glob("retail_items.csv*"))
        texts = read_table(items[0], ["stock_code", "description"], dtype=str) if items else None
    else:
        lines = release_lines(first, notes)
        lists = buy_again(lines, list_size)
        texts = lines[["stock_code", "description"]]
    notes.append("nobody was shown the lists: they are the items that the customer bought most recently before the invoice")
    schema = retail_schema(delay)
    events = _rows(lists, lines, delay, notes)
    shown = (events["split"] != HISTORY).to_numpy()
    split, note = cut_by_time(events[shown], schema, 1 - validation_share)
    events.loc[shown, "split"] = split
    if texts is not None:
        events["description"] = at_rows(texts, "stock_code", events["stock_code"])["description"]
    return Log(events=events, schema=schema, name="retail", notes=(*notes, note))


def _rows(lists: pd.DataFrame, lines: pd.DataFrame, delay: int, notes: list[str]) -> pd.DataFrame:
    """Rows of lists, and the lines that are none of them as history, with counts; in order of time."""
    pair = ["invoice", "stock_code"]
    if (doubled := lists.duplicated(pair)).any():
        raise ValueError(f"an item must be in a list once. Received: {lists.loc[doubled, pair].iloc[0].to_dict()} twice")
    lines = lines.groupby(pair, sort=False, as_index=False).agg(
        {"customer_id": "first", "timestamp": "first", "quantity": "sum", "unit_price": "last"}
    )
    lists = lists.merge(lines[[*pair, "quantity"]], on=pair, how="left").assign(line=False, request_id=lists["invoice"])
    lists["quantity"] = lists["quantity"].where(lists["bought"] == 1, 0.0)
    bought = pd.MultiIndex.from_frame(lists.loc[lists["bought"] == 1, pair])
    in_list = pd.MultiIndex.from_frame(lines[pair]).isin(bought)
    notes.append(f"{int((~in_list).sum()):,} of {len(lines):,} lines are no row of a list: they are 'history'")
    lines = lines.assign(bought=1, line=True, request_id=-1 - np.arange(len(lines)))
    both = pd.concat([lists, lines], ignore_index=True).rename(columns={"timestamp": "time"})
    is_line = both["line"].to_numpy()
    both = pd.concat([both, *_counts(both, is_line, delay)], axis=1)
    both["price"] = both["unit_price"].where(is_line, _latest_price(both, is_line, delay))
    both["list_size"] = both.groupby("request_id")["stock_code"].transform("size").where(~is_line, 0).astype(np.float64)
    hour, weekday = both["time"] // 3600 % 24, (both["time"] // _DAY + 3) % 7  # 1970-01-01 was a Thursday
    both = both.assign(hour=hour, weekday=weekday, split=np.where(is_line, HISTORY, "train"))
    kept: np.ndarray = ~is_line | np.concatenate([np.zeros(len(lists), dtype=bool), ~in_list])
    rows: pd.DataFrame = both[kept].sort_values(["time", "request_id"], kind="stable", ignore_index=True)
    if unpriced := int(rows["price"].isna().sum()):
        notes.append(f"{unpriced:,} rows are of items without an earlier line: they have no price")
    return rows.drop(columns=["line", "unit_price", "invoice"])


def _counts(both: pd.DataFrame, is_line: np.ndarray, delay: int) -> list[pd.DataFrame]:
    keys = {"customer_id": "user", "stock_code": "item"}
    shown = earlier_counts(both, keys, "views", {"bought": "buy_rate"}, delay, counted=~is_line, prior=_PRIOR)
    sales = point_in_time_counts(both, "stock_code", [28 * _DAY, None], (), delay=delay, counted=is_line).astype(np.float64)
    # One row per invoice, of which those with lines are counted.
    invoices = both.loc[is_line, ["customer_id", "invoice", "time"]].drop_duplicates("invoice")
    moments = pd.concat([both[["customer_id", "time"]], invoices[["customer_id", "time"]]], ignore_index=True)
    counted = np.arange(len(moments)) >= len(both)
    so_far = point_in_time_counts(moments, "customer_id", [None], (), delay=delay, counted=counted)["customer_id_views_all"]
    past = invoices[["customer_id", "time"]].drop_duplicates().assign(last=lambda rows: rows["time"]).sort_values("time")
    asked = both[["customer_id", "time"]].assign(row=np.arange(len(both)), until=both["time"] - delay).sort_values("until", kind="stable")
    found = pd.merge_asof(asked, past[["customer_id", "time", "last"]], left_on="until", right_on="time", by="customer_id")
    gap = np.empty(len(both))
    gap[found["row"]] = asked["time"].to_numpy() - found["last"].to_numpy()
    rest = {
        "item_sales_28d": sales.iloc[:, 0],
        "item_sales": sales.iloc[:, 1],
        "user_invoices": so_far.to_numpy()[: len(both)].astype(np.float64),
        "gap": gap,
    }
    return [shown, pd.DataFrame(rest, index=both.index)]


def _latest_price(both: pd.DataFrame, is_line: np.ndarray, delay: int) -> pd.Series:
    """The unit price of the item's latest line that was known at the row."""
    lines = both.loc[is_line, ["stock_code", "time", "unit_price"]].sort_values("time", kind="stable")
    lines = lines.drop_duplicates(["stock_code", "time"], keep="last")
    asked = both[["stock_code"]].assign(time=both["time"] - delay, row=np.arange(len(both))).sort_values("time", kind="stable")
    found = pd.merge_asof(asked, lines, on="time", by="stock_code")
    return pd.Series(found["unit_price"].to_numpy(), index=found["row"].to_numpy()).sort_index().set_axis(both.index)
