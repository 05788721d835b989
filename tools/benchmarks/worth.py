"""The page of results on four logs: peers and rankers on `validation` and `new_members`, by one command that goes on where it stopped.

    python tools/benchmarks/worth.py FOLDER [--logs ebnerd ...] [--seeds 0 1 2] [--only peers|rankers] [--limit MINUTES] [--models FOLDER]
    python tools/benchmarks/worth.py --page

FOLDER holds the files of all logs. Finished fits and runs are lines of `peers.jsonl` and `rankers.jsonl` in `tools/benchmarks/results`,
with the options that they had: what is there with the same options is not run again. The page,
`docs/results/worth.md`, is written from these two files, after each log and with `--page` alone.

What runs is in `PEERS` and `RUNS`; what that is, in `peers.py` and `rankers.py`. A quarter of the members is held out and scored as
`new_members`; runs named in `WHOLE` are made once more with all members.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peers
import rankers
from peer_features import open_case
from runs import holdout_of, mean_cell, read_lines

LINES = Path(__file__).resolve().parent / "results"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "worth.md"
HEAD = """# Four logs

The rankers and their peers on the same rows and the same columns: means over seeds, ± half of the 95 % interval from three seeds on.
Splits are by time. A quarter of the members, by hash, is held out and never trained on: `validation` has later rows of the others,
`new_members` later rows of these. Where all members are trained on, a table says so. Nothing is chosen on these rows: peers are
compared on the later training rows over ten settings each where a row does not say another number, the transformer's on those of a
quarter of the members; ours with `rankers.py --tuning`.

Sets of columns, each with those before it, all point in time ([guide](../guides/past.md)):

| set | columns |
|---|---|
| `plain` | what the reader has, counts and rates of item and member |
| `relative` | and each number relative to its list, where the log has lists |
| `personal` | and the member's own past with this item and what it shares with others, times, visits, residuals of similar items |
| `new` | and strengths and rates that know the list |
| `fold_in` | and how member and item fit by vectors from the log |
| `counts` | of MovieLens: all but personal columns |

"With offset" is the log loss with an offset of the logit that follows the base rate, fitted on what was known at each hundredth of the
rows ([daily training](../guides/daily.md)), for peers and ours alike.

LightGBM LambdaRank, logistic regression, an MLP on the same columns, and `transformer`, a plain causal transformer over what the member
did with the same columns beside it, are peers in common use. Minutes are of one core, training and scores of one seed; in rows with a
forest without the training of networks that another row has.

```bash
python tools/benchmarks/worth.py FOLDER      # goes on where it stopped
python tools/benchmarks/worth.py --page      # this page alone
```
"""
TITLES = {
    "ebnerd": "EB-NeRD: lists of news",
    "movielens-1m": "MovieLens-1M: ratings of films",
    "retail": "Online Retail: what is bought again",
    "kuairand-pure": "KuaiRand-Pure: short videos, `long_view`",
}
FORESTS, ALL = ("LightGBM binary", "LightGBM LambdaRank"), tuple(peers.SETTINGS)
# (models, sets of columns, settings that are compared)
PEERS: dict[str, list[tuple[tuple[str, ...], tuple[str, ...], int]]] = {
    "ebnerd": [(ALL, ("fold_in",), 10), (FORESTS, ("relative", "new"), 10)],
    "movielens-1m": [(ALL, ("personal",), 10), (("LightGBM binary",), ("plain", "fold_in"), 10)],
    "retail": [(ALL, ("fold_in",), 10), (FORESTS, ("relative",), 10)],
    "kuairand-pure": [(ALL, ("fold_in",), 10), (("LightGBM binary",), ("plain",), 10)],
}
COLUMNS = {
    "impression_auc": "impression AUC",
    "auc": "AUC",
    "ndcg_at_10": "NDCG@10",
    "log_loss": "log loss",
    "followed_log_loss": "with offset",
    "calibration_error": "calibration error",
}
Line = Mapping[str, Any]


def run_all(folder: str, logs: Sequence[str], seeds: Sequence[int], only: str | None, until: float, kept: Path | None) -> None:
    """All jobs of the logs in turn, those with all members last; stops before the first that begins after `until`."""
    for holdout in (0.25, 0.0):
        for log in logs:
            names = [name for name in rankers.RUNS[log] if holdout or name in rankers.WHOLE[log]]
            parts = PEERS[log] if holdout else [(FORESTS, (rankers.WHOLE_SET[log],), 10)]
            case = open_case(log, folder, holdout)
            if only != "rankers":
                for models, sets, settings in parts:
                    for of in sets:
                        if time.monotonic() > until:
                            return
                        peers.run(case, models, (of,), seeds, LINES / "peers.jsonl", most_settings=settings)
            if only != "peers":
                for name in names:
                    for seed in seeds:
                        if time.monotonic() > until:
                            return
                        rankers.run_line(case, name, seed, LINES / "rankers.jsonl", kept=kept)
            write_page()


def cells(found: Sequence[Line], split: str, log: str) -> list[str]:
    """Means over seeds of one row of a table; '-' where the log has no lists, or the scores are no probabilities."""
    without = ("impression_auc", "ndcg_at_10") if log in ("movielens-1m", "kuairand-pure") else ()
    out = []
    for name in COLUMNS:
        values = [line["figures"][split].get(name) for line in found]
        out.append("-" if name in without or None in values else mean_cell(values))
    return out


def table_of(log: str, holdout: float, split: str, of_peers: Sequence[Line], of_rankers: Sequence[Line]) -> list[str]:
    """Rows of the models that have figures, each with its mean over seeds."""
    rows: dict[str, list[Line]] = {}
    own = [line for line in of_peers if (line["log"], holdout_of(line)) == (log, holdout)]
    tried = Counter((line["model"], line["features"]) for line in own if line["stage"] == "compared")
    for line in own:
        if line["stage"] == "scored":
            count = tried[line["model"], line["features"]]
            settings = "" if count not in range(1, 10) else ", one setting" if count == 1 else f", best of {count} settings"
            rows.setdefault(f"{line['model']}, `{line['features']}`{settings}", []).append(line)
    for name, found in rows.items():
        rows[name] = [line for line in found if line["setting"] == found[-1]["setting"]]
    for line in of_rankers:
        if (line["log"], holdout_of(line)) == (log, holdout) and not line.get("tuning"):
            rows.setdefault(f"**{rankers.words_of(line['run'])}**", []).append(line)
    lines = [f"| model | {' | '.join(COLUMNS.values())} | seeds | minutes |", f"|{'---|' * (len(COLUMNS) + 3)}"]
    for name, found in rows.items():
        if split in found[0]["figures"]:
            minutes = float(np.mean([line["seconds"] for line in found])) / 60
            lines.append(f"| {name} | {' | '.join(cells(found, split, log))} | {len(found)} | {minutes:.1f} |")
    return lines if len(lines) > 2 else []


def worth_of(log: str, of_rankers: Sequence[Line]) -> list[str]:
    """What a part gives: differences of runs of the same seed, with intervals; where none was made with members held out, with all."""
    metric = "impression_auc" if log in ("ebnerd", "retail") else "auc"
    lines = []
    for words, run, without in rankers.PARTS[log]:
        for holdout in (0.25, 0.0):
            pairs: dict[int, dict[str, Line]] = {}
            for line in of_rankers:
                if (line["log"], holdout_of(line)) == (log, holdout) and not line.get("tuning") and line["run"] in (run, without):
                    pairs.setdefault(line["seed"], {})[line["run"]] = line
            both = [pair for pair in pairs.values() if len(pair) == 2]
            if both:
                found = [(pair[run]["figures"], pair[without]["figures"]) for pair in both]
                row = [words, rankers.words_of(run)]
                for split in ("validation", "new_members"):
                    for name in (metric, "log_loss"):
                        known = split in found[0][0]
                        row.append(mean_cell([own[split][name] - other[split][name] for own, other in found]) if known else "-")
                lines.append(f"| {' | '.join(row)} | {len(both)} |")
                break
    if not lines:
        return []
    head = "| part | in | validation: AUC | log loss | new members: AUC | log loss | seeds |"
    return [
        "",
        "What parts give (impression AUC where the log has lists), of the same seed with and without; `-`: all members were trained on:",
        "",
        head,
        f"|{'---|' * 7}",
        *lines,
    ]


def write_page() -> None:
    """`docs/results/worth.md` of the lines that there are."""
    of_peers = read_lines(LINES / "peers.jsonl")
    of_rankers = [line for line in read_lines(LINES / "rankers.jsonl") if rankers.is_current(line)]
    text = HEAD.rstrip("\n").splitlines()
    for log, title in TITLES.items():
        body: list[str] = []
        for holdout, split, words in (
            (0.25, "validation", "Later rows, a quarter of the members held out"),
            (0.25, "new_members", "Later rows of the members that were held out"),
            (0.0, "validation", "Later rows, all members trained on"),
        ):
            if rows := table_of(log, holdout, split, of_peers, of_rankers):
                body += ["", f"{words} (`{split}`):", "", *rows]
        body += worth_of(log, of_rankers)
        text += ["", f"## {title}", *body] if body else []
    PAGE.write_text("\n".join(text) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", metavar="FOLDER")
    parser.add_argument("--logs", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", choices=["peers", "rankers"])
    parser.add_argument("--limit", type=float, metavar="MINUTES", help="begin nothing after so many minutes")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="where trained networks are kept, for runs that share one")
    parser.add_argument("--page", action="store_true", help="write the page of the lines that there are")
    args = parser.parse_args(arguments)
    if not args.page and args.folder is None:
        parser.error("FOLDER is needed, or --page")
    LINES.mkdir(exist_ok=True)
    if not args.page:
        until = np.inf if args.limit is None else time.monotonic() + 60 * args.limit
        run_all(args.folder, args.logs, args.seeds, args.only, until, args.models)
        print("done" if time.monotonic() <= until else "stopped at --limit: run it again to go on", file=sys.stderr)
    write_page()


if __name__ == "__main__":
    main()
