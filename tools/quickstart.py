"""The main job end to end, on a simulated log; run by tools/quickstart.

simulate -> train CADET -> evaluate with a popularity ranker and a logistic regression as baselines -> export -> serve -> score one
request by REST and gRPC -> table, ranked candidates, plots, report page. Exits with 1 where a served score is not the Keras score.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking import commands

ROOT = Path(__file__).resolve().parents[1]
STEPS = 8
TOLERANCE = 1e-5  # largest difference of a probability between Keras and the served graph
started = time.perf_counter()
count = 0


@contextmanager
def step(what: str) -> Iterator[None]:
    """Print a numbered line before a step, and its duration after it."""
    global count
    count += 1
    begin = time.perf_counter()
    print(f"\n[{count}/{STEPS}] {what}", flush=True)
    yield
    print(f"      done in {time.perf_counter() - begin:.0f} s, {time.perf_counter() - started:.0f} s in total", flush=True)


def counted_by_schema(log: Any) -> Any:
    """The log without its columns of counts, and with a schema that states them: training counts them, and saves the state for serving."""
    from keras_ranking import Count

    day = 86_400
    counts = (
        Count("item_id", of="views", window=day, name="item_views_24h"),
        Count("item_id", action="click", window=day, name="item_click_rate_24h"),
        Count("item_id", action="click", name="item_click_rate_all"),
    )
    names = [count.name for count in counts]
    kept = [feature for feature in log.schema.features if feature.name not in names]
    schema = log.schema.model_copy(update={"features": (*kept, *counts)})
    return replace(log, events=log.events.drop(columns=names), schema=schema)


def popularity(log: Any, rows: np.ndarray) -> np.ndarray:
    """The item's click rate over all data known ten minutes before the impression."""
    return log.events["item_click_rate_all"].to_numpy()[rows]


def logistic_regression(log: Any, rows: np.ndarray) -> np.ndarray:
    """scikit-learn's logistic regression on all inputs of the schema except ids, fitted on the training rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import OneHotEncoder

    train = (log.events["split"] == "train").to_numpy()
    schema = log.schema.fit(log.events[train])
    columns = []
    for feature in schema.inputs():
        if feature.kind == "id":
            continue
        encoded = feature.encode(log.events[feature.name]).reshape(len(log.events), -1)
        if feature.kind == "category":
            encoded = OneHotEncoder(categories=[np.arange(feature.rows)], sparse_output=False, dtype=np.float32).fit_transform(encoded)
        columns.append(encoded)
    inputs = np.concatenate(columns, axis=1)
    model = LogisticRegression(max_iter=500).fit(inputs[train], log.events["click"].to_numpy()[train])
    return model.predict_proba(inputs[rows])[:, 1]


def one_request(log: Any) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """A request of a member with a long history, a minute after the log's last row: (history, candidates without counts, time)."""
    events = log.events
    shown = events[events["split"] == "test"]
    member = events.loc[events["member_id"].isin(shown["member_id"]), "member_id"].mode().iloc[0]
    candidates = shown[shown["request_id"] == shown.loc[shown["member_id"] == member, "request_id"].iloc[-1]]
    moment = int(events["time"].max()) + 60
    older = (moment - candidates["time"]) / 3600
    history = events[events["member_id"] == member].drop(columns=["split", "shuffled", "feedback_seconds"])
    known = [feature.name for feature in log.schema.inputs() if feature.kind != "count"]
    return history, candidates.assign(age_hours=candidates["age_hours"] + older)[known].reset_index(drop=True), moment


def towers_of_clicks(model: Any, log: Any, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """P(click) at each position bucket (n, K), the bucket shown (n,) and the label (n,) of every row of the split."""
    from keras_ranking import training
    from keras_ranking.data import build_sequences, pack

    wanted = (log.events["split"] == split).to_numpy()
    sequences = build_sequences(log.events, model.schema, target=wanted)
    towers = training.predict_events(model, pack(sequences, 1024))["click"]
    bucket = np.searchsorted(model.boundaries, sequences.position, side="left")
    rows = sequences.target
    return towers[rows], bucket[rows], sequences.labels["click"][rows]


def plot(
    folder: Path, losses: dict[str, list[float]], curves: dict[str, np.ndarray], scores: dict[str, tuple[np.ndarray, np.ndarray]]
) -> list[Path]:
    """Loss by epoch; position curves side by side; calibration of (probability, label) pairs."""
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("loss.png", "position.png", "calibration.png")]

    figure, axis = plt.subplots(figsize=(5, 3.5))
    for name, values in losses.items():
        axis.plot(range(1, len(values) + 1), values, marker="o", label=name)
    axis.set(xlabel="epoch", ylabel="training loss")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend()
    figure.savefig(paths[0], dpi=120, bbox_inches="tight")

    figure, axis = plt.subplots(figsize=(5, 3.5))
    for shift, (name, curve) in zip((-0.2, 0.2), curves.items(), strict=True):
        axis.bar(np.arange(len(curve)) + shift, curve, width=0.4, label=name)
    axis.set(xlabel="position", ylabel="P(click) relative to position 1", xticks=range(3), xticklabels=["1", "2 to 4", "5 and below"])
    axis.legend()
    figure.savefig(paths[1], dpi=120, bbox_inches="tight")

    figure, axis = plt.subplots(figsize=(5, 3.5))
    for name, (score, label) in scores.items():
        bins = np.array_split(np.argsort(score, kind="stable"), 10)
        axis.plot([score[rows].mean() for rows in bins], [label[rows].mean() for rows in bins], marker="o", label=name)
    edge = axis.get_xlim()[1]
    axis.plot([0, edge], [0, edge], color="grey", linewidth=1, label="perfect")
    axis.set(xlabel="mean P(click) of a tenth of the rows", ylabel="their click rate")
    axis.legend()
    figure.savefig(paths[2], dpi=120, bbox_inches="tight")
    plt.close("all")
    return paths


def serve_and_score(served: Path, model: Any, request: tuple[pd.DataFrame, pd.DataFrame, int]) -> pd.DataFrame:
    """Scores of one request by gRPC and by REST, compared with the Keras model's."""
    from keras_ranking.serving import Client, serve

    expected = commands.score_here(model, *request)
    with serve(served, rest_port=0, grpc_port=0) as server:
        addresses = {"grpc": f"127.0.0.1:{server.grpc_port}", "rest": f"http://127.0.0.1:{server.rest_port}"}
        for protocol, address in addresses.items():
            with Client(address, model.schema, model=server.name, protocol=protocol) as client:
                begin = time.perf_counter()
                scores = client.score(*request)
                seconds = time.perf_counter() - begin
            apart = float(np.abs(scores.to_numpy() - expected.to_numpy()).max())
            print(f"      {protocol} {address}: {len(scores)} scores in {1e3 * seconds:.0f} ms, at most {apart:.1e} from those of Keras")
            if not apart <= TOLERANCE:
                sys.exit(f"quickstart: scores by {protocol} are {apart:.1e} from those of Keras; at most {TOLERANCE} is right")
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/quickstart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=1200, help="simulated members (default: 1200)")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the log (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="of the log and the model (default: 0)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "quickstart", help="folder of model, figures and plots")
    parser.add_argument("--served", type=Path, default=ROOT / "saved_models" / "cadet", help="folder of the exported versions")
    args = parser.parse_args()
    print("starting keras ...", flush=True)
    with commands.quiet_imports():
        from keras_ranking import data, metrics, reports, serving, training

    with step(f"simulate a feed: {args.members:,} members, 14 days"):
        log = counted_by_schema(data.simulate(members=args.members, seed=args.seed))
        events = log.events
        print(f"      {len(events):,} impressions in {events['request_id'].nunique():,} requests, {events['click'].mean():.1%} clicked")

    with step(f"train CADET on the `train` rows, {args.epochs} epochs"):
        training.keep_freed_memory()
        model, history = training.train(log, out=args.out / "cadet", seed=args.seed, epochs=args.epochs)

    with step("evaluate on the `test` rows: CADET, popularity, logistic regression"):
        counted = data.with_counts(log)  # for the baselines; `train` and `evaluate` count by themselves
        rows = np.flatnonzero((events["split"] == "test").to_numpy())
        labels, requests = events["click"].to_numpy()[rows], events["request_id"].to_numpy()[rows]
        baselines = {"popularity": popularity(counted, rows), "logistic regression": logistic_regression(counted, rows)}
        results = {name: metrics.summary(labels, score, requests) for name, score in baselines.items()}
        results["CADET"] = training.evaluate(args.out / "cadet", log, split="test")["click"]
        results["true click probability"] = metrics.summary(labels, log.truth.click[rows], requests)
        (args.out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    with step("plot"):
        towers, bucket, clicked = towers_of_clicks(model, counted, "test")
        curve = towers.mean(axis=0) / towers[:, 0].mean()
        scores = {name: (score, labels) for name, score in baselines.items()}
        scores["CADET"] = (towers[np.arange(len(towers)), bucket], clicked)
        plots = plot(args.out / "plots", history["epochs"], {"planted": log.truth.position_ratio, "recovered": curve}, scores)

    with step(f"export to {args.served}"):
        version = serving.export(model, args.served)
        print(f"      version {version.name}; scores compared with Keras in a fresh process")

    with step("serve with the embedded server, score one request by gRPC and REST"):
        history, bare, moment = one_request(log)
        candidates = data.saved_counts(args.out / "cadet").with_features(bare, moment)
        tables = {name: json.loads(rows.to_json(orient="records")) for name, rows in (("history", history), ("candidates", bare))}
        (args.out / "request.json").write_text(json.dumps({"time": moment, **tables}) + "\n", encoding="utf-8")
        served = serve_and_score(args.served, model, (history, candidates, moment))

    with step("report"):
        page = reports.report_of(args.out / "cadet", log, "test", reports.ReportOptions(sample=100)).save(args.out)

    with step("results"):
        figures = ["auc", "impression_auc", "ndcg_at_10", "mrr", "log_loss", "normalized_entropy", "calibration_error"]
        print(f"\nClicks on the {len(rows):,} test impressions. Popularity and logistic regression do not use the position; the last row")
        print("is the simulator's own click probability, which a model beats only by chance.\n")
        lines = [[name, *(f"{result[figure]:.4f}" for figure in figures)] for name, result in results.items()]
        print(commands.table(["", *figures], lines))
        planted = log.truth.position_ratio.round(3).tolist()
        recovered = curve.round(3).tolist()
        print(f"\nP(click) relative to position 1, at positions 1, 2 to 4, 5 and below: planted {planted}, recovered {recovered}")
        shown = candidates[["item_id", "topic", "age_hours"]].assign(**served).sort_values("click", ascending=False)
        print(f"\nOne request: {len(history)} events of history, {len(shown)} candidates ranked by P(click).\n")
        lines = [[str(rank), *map(cell, row)] for rank, row in enumerate(shown.itertuples(index=False), 1)]
        print(commands.table(["rank", *shown.columns], lines))
        print("\nplots: " + "\n       ".join(map(str, plots)))
        print(f"report: {page}")
    here = Path(sys.executable).parent / "keras-ranking"
    print(f"\nmodel: {args.out / 'cadet'}\nserved model: {version}\n\nnext steps:")
    print(f"  {here} serve {args.served}")
    print(f"  {here} score {args.out / 'request.json'} --server 127.0.0.1:8500 --schema {args.out / 'cadet' / 'schema.json'}")


def cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
