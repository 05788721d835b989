"""The release of Online Retail: its lines, and "buy again" lists made of them."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.data.readers.log import require_columns

_RENAMED = {  # of Online Retail, and of Online Retail II
    "InvoiceNo": "invoice",
    "Invoice": "invoice",
    "StockCode": "stock_code",
    "Description": "description",
    "Quantity": "quantity",
    "InvoiceDate": "moment",
    "UnitPrice": "unit_price",
    "Price": "unit_price",
    "CustomerID": "customer_id",
    "Customer ID": "customer_id",
}
_NEEDED = ("invoice", "stock_code", "description", "quantity", "moment", "unit_price", "customer_id")


def release_lines(path: Path, notes: list[str]) -> pd.DataFrame:
    """The lines of products that a known customer bought, in order of time.

    Args:
        path: .xlsx, .csv or .csv.gz.
        notes: what was left out is added, with numbers.

    Returns:
        Columns invoice (0, 1, ... in order of time), customer_id, timestamp (Unix seconds), stock_code, quantity, unit_price, description.

    Raises:
        ImportError: an .xlsx file without openpyxl.
        ValueError: a missing column, or a time that is none.
    """
    texts: Any = {"InvoiceNo": str, "Invoice": str, "StockCode": str, "Description": str}
    if path.suffix == ".xlsx":
        try:
            import openpyxl  # noqa: F401
        except ImportError as error:
            raise ImportError(f"reading {path.name} needs openpyxl: pip install openpyxl; or save the sheet as csv") from error
        rows = pd.concat(pd.read_excel(path, sheet_name=None, dtype=texts, engine="openpyxl").values(), ignore_index=True)
    else:
        rows = pd.read_csv(path, dtype=texts, encoding="latin-1")
    rows = rows.rename(columns=_RENAMED)
    require_columns(rows, _NEEDED, path)
    rows = rows[list(_NEEDED)].assign(timestamp=_seconds(rows["moment"], path))
    for reason, kept in (
        ("without a customer", rows["customer_id"].notna()),
        ("of cancelled invoices or with a quantity or price of zero or less", _sold(rows)),
        ("of codes that are no product, which begins with five digits", rows["stock_code"].str.match(r"\d{5}").fillna(False)),
    ):
        kept = kept.reindex(rows.index).astype(bool)
        if not kept.all():
            notes.append(f"{int((~kept).sum()):,} lines {reason} are left out")
            rows = rows[kept]
    rows = rows.assign(timestamp=rows.groupby("invoice")["timestamp"].transform("min"))
    rows = rows.sort_values("timestamp", kind="stable", ignore_index=True)
    rows["invoice"] = pd.factorize(rows["invoice"])[0].astype(np.int64)
    rows["customer_id"] = rows["customer_id"].astype(np.int64)
    rows["stock_code"] = rows["stock_code"].str.upper()
    return rows.drop(columns="moment")


def _sold(rows: pd.DataFrame) -> pd.Series:
    cancelled = rows["invoice"].str.upper().str.startswith("C").fillna(False).astype(bool)
    return ~cancelled & (rows["quantity"] > 0) & (rows["unit_price"] > 0)


def _seconds(moments: pd.Series, path: Path) -> np.ndarray:
    """Unix seconds of a column of datetimes, of ISO texts, or of texts such as 12/1/2010 8:26 (month first); no zone, so UTC."""
    try:
        stamps = pd.to_datetime(moments, format="%m/%d/%Y %H:%M" if moments.astype(str).str.contains("/").any() else "ISO8601")
    except ValueError as error:
        raise ValueError(
            f"column 'InvoiceDate' of {path.name} must hold times such as 2010-12-01 08:26 or 12/1/2010 8:26. {error}"
        ) from error
    return ((stamps - pd.Timestamp(0)) // pd.Timedelta(seconds=1)).to_numpy(dtype=np.int64)


def buy_again(lines: pd.DataFrame, size: int = 40) -> pd.DataFrame:
    """For each invoice of a customer with a past, the items bought most recently before it, and whether it has them.

    "Before" is in an earlier second: invoices of one customer and second do not see one another. The latest line comes first; of two
    lines of one invoice, the later in the frame.

    Args:
        lines: columns invoice, customer_id, timestamp, stock_code.
        size: longest list.

    Returns:
        Columns invoice, customer_id, timestamp, stock_code, bought, in order of customer and time.
    """
    ordered = lines.sort_values(["customer_id", "timestamp", "invoice"], kind="stable")
    columns = [ordered[name].tolist() for name in ("customer_id", "timestamp", "invoice", "stock_code")]
    out: list[tuple[Any, ...]] = []
    for customer, of_customer in groupby(zip(*columns, strict=True), key=lambda line: line[0]):
        latest: dict[Any, None] = {}  # items, the latest last
        for moment, of_moment in groupby(of_customer, key=lambda line: line[1]):
            bought = list(of_moment)
            recent = list(reversed(latest))[:size]
            for invoice, of_invoice in groupby(bought, key=lambda line: line[2]):
                items = {line[3] for line in of_invoice}
                out += [(invoice, customer, moment, item, int(item in items)) for item in recent]
            for line in bought:
                latest.pop(line[3], None)
                latest[line[3]] = None
    return pd.DataFrame(out, columns=["invoice", "customer_id", "timestamp", "stock_code", "bought"])
