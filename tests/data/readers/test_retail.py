"""Reader of Online Retail."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

from keras_ranking.data.checks import check_events
from keras_ranking.data.readers import read_retail
from keras_ranking.data.readers.retail_lines import buy_again

DAY = 86_400


@pytest.fixture(scope="module")
def lines() -> pd.DataFrame:
    """Invoices of five customers, two of them in one second of customer 1."""
    rng = np.random.default_rng(0)
    rows = []
    for invoice in range(60):
        customer, time = int(rng.integers(1, 6)), 1_291_192_080 + invoice * DAY // 2
        items = rng.choice(30, int(rng.integers(1, 9)), replace=False)
        rows += [(invoice, customer, time, f"{20_000 + item}{'AB'[item % 2]}", int(rng.integers(1, 12)), 1.0 + item % 7) for item in items]
    made = pd.DataFrame(rows, columns=["invoice", "customer_id", "timestamp", "stock_code", "quantity", "unit_price"])
    of_one = made.loc[made["customer_id"] == 1, "invoice"].unique()
    made.loc[made["invoice"] == of_one[3], "timestamp"] = made.loc[made["invoice"] == of_one[2], "timestamp"].iloc[0]
    return made.sort_values(["timestamp", "invoice"], kind="stable", ignore_index=True)


def _lists(lines: pd.DataFrame, size: int) -> set[tuple]:
    """The lists, one invoice and one item at a time."""
    out = set()
    for invoice, own in lines.groupby("invoice"):
        customer, time = own[["customer_id", "timestamp"]].iloc[0]
        past = lines[(lines["customer_id"] == customer) & (lines["timestamp"] < time)]
        items = past.sort_values(["timestamp", "invoice"], kind="stable").drop_duplicates("stock_code", keep="last")
        out |= {(invoice, item, int(item in set(own["stock_code"]))) for item in items["stock_code"].tail(size)}
    return out


@pytest.mark.parametrize("size", [5, 40])
def test_lists_are_the_items_bought_most_recently_before(lines, size):
    made = buy_again(lines, size)
    assert set(made[["invoice", "stock_code", "bought"]].itertuples(index=False, name=None)) == _lists(lines, size)
    assert not made.duplicated(["invoice", "stock_code"]).any() and made.groupby("invoice").size().max() <= size
    shuffled = buy_again(lines.sample(frac=1, random_state=0).sort_values(["timestamp", "invoice"], kind="stable"), 40)
    assert size != 40 or set(shuffled[["invoice", "stock_code"]].itertuples(index=False, name=None)) == {
        row[:2] for row in _lists(lines, 40)
    }


def _save(lines: pd.DataFrame, folder) -> None:
    buy_again(lines).to_csv(folder / "retail_again.csv.gz", index=False)
    lines.to_csv(folder / "retail_lines.csv.gz", index=False)
    items = lines[["stock_code"]].drop_duplicates()
    items.assign(description="GLASS STAR", median_price=2.0).to_csv(folder / "retail_items.csv.gz", index=False)


def _release(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines as the release has them, with rows that are to be left out."""
    rows = pd.DataFrame(
        {
            "InvoiceNo": (536_365 + lines["invoice"]).astype(str),
            "StockCode": lines["stock_code"].str.lower(),
            "Description": "GLASS STAR",
            "Quantity": lines["quantity"],
            "InvoiceDate": pd.to_datetime(lines["timestamp"], unit="s").dt.strftime("%m/%d/%Y %H:%M"),
            "UnitPrice": lines["unit_price"],
            "CustomerID": lines["customer_id"].astype(float),
            "Country": "France",
        }
    )
    first = rows.iloc[[0]]
    others = [first.assign(StockCode="POST"), first.assign(CustomerID=np.nan), first.assign(InvoiceNo="C536999", Quantity=-3)]
    return pd.concat([rows, *others, first.assign(UnitPrice=0.0)], ignore_index=True)


def test_lists_and_release_give_the_same_log(lines, tmp_path):
    whole_minutes = lines.assign(timestamp=lines["timestamp"] // 60 * 60)
    (tmp_path / "lists").mkdir()
    _save(whole_minutes, tmp_path / "lists")
    log = read_retail(tmp_path / "lists")
    _release(whole_minutes).to_csv(tmp_path / "Online Retail.csv", index=False)
    other = read_retail(tmp_path)
    order = ["time", "customer_id", "request_id", "stock_code"]
    invoices = dict(zip(pd.factorize(whole_minutes["invoice"])[1], range(60), strict=True))
    renamed = log.events["request_id"].map(lambda request: invoices.get(request, request))  # a line keeps its negative number
    mine = log.events.assign(request_id=renamed).sort_values(order, ignore_index=True)
    theirs = other.events.sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(mine, theirs[list(mine)], check_dtype=False)
    assert len([note for note in other.notes if "are left out" in note]) == 3
    assert "1 lines of codes that are no product" in " ".join(other.notes)


def test_rows_splits_and_labels(lines, tmp_path):
    _save(lines, tmp_path)
    log = read_retail(tmp_path)
    events = log.events
    shown, history = events[events["split"] != "history"], events[events["split"] == "history"]
    # Every line once: as a row that was bought, or as history.
    assert shown["bought"].sum() + len(history) == len(lines) and (history["bought"] == 1).all() and (history["request_id"] < 0).all()
    assert history["request_id"].is_unique
    assert shown.loc[shown["bought"] == 0, "quantity"].eq(0).all() and shown.loc[shown["bought"] == 1, "quantity"].gt(0).all()
    assert shown.groupby("request_id")["split"].nunique().max() == 1
    assert log.split("train")["time"].max() < log.split("validation")["time"].min()
    share = log.split("train")["request_id"].nunique() / shown["request_id"].nunique()
    assert share == pytest.approx(0.8, abs=0.03) and events["time"].is_monotonic_increasing
    assert check_events(events, log.schema)[1].kept == len(events)
    assert {"bought", "quantity"}.isdisjoint(feature.name for feature in log.schema.features)


def test_counts_are_of_earlier_seconds(lines, tmp_path):
    _save(lines, tmp_path)
    events = read_retail(tmp_path).events
    shown = events[events["split"] != "history"]
    for row in shown.sample(40, random_state=0).itertuples():
        earlier, mine = shown[shown["time"] < row.time], lines[lines["timestamp"] < row.time]
        own, item = earlier[earlier["customer_id"] == row.customer_id], earlier[earlier["stock_code"] == row.stock_code]
        assert (row.user_views, row.item_views) == (len(own), len(item))
        assert row.user_buy_rate == pytest.approx((own["bought"].sum() + 3) / (len(own) + 20))
        assert row.item_buy_rate == pytest.approx((item["bought"].sum() + 3) / (len(item) + 20))
        sold = mine[mine["stock_code"] == row.stock_code]
        assert row.item_sales == len(sold) and row.item_sales_28d == (sold["timestamp"] > row.time - 1 - 28 * DAY).sum()
        assert row.price == sold["unit_price"].iloc[-1]
        past = mine[mine["customer_id"] == row.customer_id]
        assert row.user_invoices == past["invoice"].nunique() and row.gap == row.time - past["timestamp"].max()
        assert row.list_size == (shown["request_id"] == row.request_id).sum()


def test_an_outcome_moves_no_row_of_its_second_or_before(lines, tmp_path):
    _save(lines, tmp_path)
    before = read_retail(tmp_path)
    numbers = [feature.name for feature in before.schema.features]
    shown = before.events[before.events["split"] != "history"]
    moment = int(np.sort(shown["time"].unique())[20])
    lists = buy_again(lines)
    flipped = lists["timestamp"] >= moment
    lists.loc[flipped, "bought"] = 1 - lists.loc[flipped, "bought"]
    lists.to_csv(tmp_path / "retail_again.csv.gz", index=False)
    later = read_retail(tmp_path).events
    later = later[later["split"] != "history"]
    key = ["request_id", "stock_code"]
    pairs = shown.sort_values(key)[["time", *numbers]], later.sort_values(key)[["time", *numbers]]
    early = [part[part["time"] <= moment].reset_index(drop=True) for part in pairs]
    pd.testing.assert_frame_equal(*early, check_exact=True)
    assert not pairs[0].reset_index(drop=True).equals(pairs[1].reset_index(drop=True))  # a control: later rows do move


def test_a_workbook_needs_openpyxl(lines, tmp_path, monkeypatch):
    (tmp_path / "Online Retail.xlsx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ImportError, match="reading Online Retail.xlsx needs openpyxl: pip install openpyxl; or save the sheet as csv"):
        read_retail(tmp_path)


def test_a_workbook(lines, tmp_path):
    pytest.importorskip("openpyxl.workbook")
    rows = _release(lines)
    rows["InvoiceDate"] = pd.to_datetime(rows["InvoiceDate"], format="%m/%d/%Y %H:%M")
    rows.to_excel(tmp_path / "Online Retail.xlsx", index=False)
    log = read_retail(tmp_path)
    (tmp_path / "csv").mkdir()
    rows.to_csv(tmp_path / "csv" / "Online Retail.csv", index=False)
    pd.testing.assert_frame_equal(log.events, read_retail(tmp_path / "csv").events)


def test_faults(lines, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no Online Retail lists .*looked for retail_again.csv"):
        read_retail(tmp_path)
    _save(lines, tmp_path)
    for options, message in (({"validation_share": 1}, "`validation_share`"), ({"list_size": 0}, "`list_size` must be a positive integer")):
        with pytest.raises(ValueError, match=message):
            read_retail(tmp_path, **options)
    lists = buy_again(lines)
    pd.concat([lists, lists.iloc[[0]]]).to_csv(tmp_path / "retail_again.csv.gz", index=False)
    with pytest.raises(ValueError, match="an item must be in a list once. Received: {'invoice': "):
        read_retail(tmp_path)
    lists.drop(columns="bought").to_csv(tmp_path / "retail_again.csv.gz", index=False)
    with pytest.raises(ValueError, match="column 'bought' is not in retail_again.csv.gz"):
        read_retail(tmp_path)
    rows = _release(lines).assign(InvoiceDate="1st of May")
    (tmp_path / "release").mkdir()
    rows.to_csv(tmp_path / "release" / "Online Retail.csv", index=False)
    with pytest.raises(ValueError, match="column 'InvoiceDate' of Online Retail.csv must hold times such as 2010-12-01 08:26"):
        read_retail(tmp_path / "release")
