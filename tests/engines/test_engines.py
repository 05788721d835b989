"""Engines divide a log; what comes out is what `keras_ranking.data.prepare` makes, bit for bit."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from tests.data.shards.logs import as_files, mixed_log, with_two_members

pytest.importorskip("duckdb", reason="the extra `scale` is not installed")
JAVA = shutil.which("java") is not None and importlib.util.find_spec("pyspark") is not None
NO_SPARK = "no Java, or the extra `spark` is not installed"
ENGINES = [
    "duckdb",
    pytest.param("spark", marks=[pytest.mark.release, pytest.mark.slow, pytest.mark.skipif(not JAVA, reason=NO_SPARK)]),
]
Prepare = Callable[..., kr.data.ShardedLog]


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    from keras_ranking.engines import spark as engine

    made = engine.session("1g", **{"spark.sql.shuffle.partitions": "2", "spark.master": "local[2]"})
    yield made
    made.stop()


@pytest.fixture
def prepare(request: pytest.FixtureRequest) -> Prepare:
    if request.param == "duckdb":
        from keras_ranking.engines import duckdb

        return duckdb.prepare
    from functools import partial

    from keras_ranking.engines import spark as engine

    return partial(engine.prepare_files, spark=request.getfixturevalue("spark"))


def contents(shards: kr.data.ShardedLog) -> dict[str, Any]:
    """Manifest and bytes."""
    files = {about["file"]: (shards.folder / about["file"]).read_bytes() for about in shards.manifest["files"]}
    return {"manifest": shards.manifest, **files}


@pytest.mark.parametrize("prepare", ENGINES, indirect=True)
def test_the_same_bits(tmp_path: Path, prepare: Prepare) -> None:
    log = mixed_log()
    files = as_files(log, tmp_path / "logs")
    whole = kr.data.prepare(log, tmp_path / "whole", shards=3, keep=["seen_after"])
    made = prepare(files, log.schema, tmp_path / "made", shards=3, keep=["seen_after"], name="mixed")
    assert contents(made) == contents(whole)


@pytest.mark.parametrize("prepare", ENGINES, indirect=True)
def test_the_same_error_for_a_request_of_two_members(tmp_path: Path, prepare: Prepare) -> None:
    log = with_two_members(mixed_log())
    files = as_files(log, tmp_path / "logs")
    with pytest.raises(ValueError, match="must hold one member for all rows of a request") as whole:
        kr.data.prepare(log, tmp_path / "whole", shards=3)
    with pytest.raises(ValueError, match="must hold one member for all rows of a request") as made:
        prepare(files, log.schema, tmp_path / "made", shards=3)
    assert str(made.value) == str(whole.value)
    assert contents(prepare(files, log.schema, tmp_path / "made", shards=3, on_error="drop", name="mixed")) == contents(
        kr.data.prepare(log, tmp_path / "whole", shards=3, on_error="drop")
    )


@pytest.mark.parametrize("prepare", ENGINES, indirect=True)
def test_a_log_without_split_is_cut_as_from_one_file(tmp_path: Path, prepare: Prepare) -> None:
    log = mixed_log()
    events = log.events.drop(columns="split")
    files = as_files(kr.data.Log(events.assign(split="train"), log.schema, "mixed"), tmp_path / "logs")
    for file in files.iterdir():
        import pandas as pd

        pd.read_parquet(file).drop(columns="split").to_parquet(file, index=False)
    cut = kr.data.Log(kr.data.split_by_time(events, log.schema, 0.7), log.schema, "mixed")
    made = prepare(files, log.schema, tmp_path / "made", shards=3, train_share=0.7)
    assert made.digest == kr.data.prepare(cut, tmp_path / "whole", shards=3).digest
    held = kr.data.hold_out_members(cut, 0.3, seed=2)
    made = prepare(files, log.schema, tmp_path / "held", shards=3, train_share=0.7, holdout=(0.3, 2))
    assert made.digest == kr.data.prepare(held, tmp_path / "whole_held", shards=3).digest


COUNTS = [
    kr.Count("item", of="views", window=3600),
    kr.Count("item", action="click"),
    kr.Count(("member", "topic"), action="cost", of="sum", window=7200, where="shown"),
]


def counted_log(**changed: Any) -> kr.data.Log:
    """A log whose schema has counts that it lacks, of amounts that are no whole numbers, and a column under another name."""
    log = mixed_log()
    events = log.events.assign(shown=np.arange(len(log.events)) % 5 > 0, cost=np.random.default_rng(1).exponential(size=len(log.events)))
    price = kr.Number("price", column="price, eur", transform="standardise", missing=0.0)
    features = (*(feature for feature in log.schema.features if feature.name != "price"), price, *COUNTS)
    events = events.rename(columns={"price": "price, eur"}).assign(**changed)
    schema = log.schema.model_copy(update={"features": features, "feedback_delay": 120})
    return kr.data.Log(events, schema, "mixed")


def own_files(log: kr.data.Log, folder: Path) -> Path:
    """The log's files, with the columns that it was made with."""
    return as_files(kr.data.Log(log.events.drop(columns="price", errors="ignore"), log.schema.model_copy(update={"features": ()})), folder)


@pytest.mark.parametrize("prepare", ENGINES, indirect=True)
def test_counts_and_other_names(tmp_path: Path, prepare: Prepare) -> None:
    log = counted_log()
    files = own_files(log, tmp_path / "logs")
    assert "price" not in pd.read_parquet(files / "000.parquet")
    whole = kr.data.prepare(kr.data.with_counts(log), tmp_path / "whole", shards=3)
    made = prepare(files, log.schema, tmp_path / "made", shards=3, name="mixed")
    assert contents(made) == contents(whole)
    late = log.schema.model_copy(update={"feedback_delay": 3600})
    other = prepare(files, late, tmp_path / "late", shards=3, name="mixed")
    assert other.digest != made.digest, "control: the delay is read"


@pytest.mark.parametrize("prepare", ENGINES, indirect=True)
def test_a_bad_amount_is_named_with_its_row(tmp_path: Path, prepare: Prepare) -> None:
    log = counted_log()
    cost = log.events["cost"].to_numpy(copy=True)
    cost[[301, 302]] = np.nan  # row 300 and each fifth does not count
    log = counted_log(cost=cost)
    files = own_files(log, tmp_path / "logs")
    with pytest.raises(ValueError, match="column 'cost' must hold finite numbers in every counted row.*at row 30[12]"):
        prepare(files, log.schema, tmp_path / "made", shards=3)
    made = prepare(files, log.schema, tmp_path / "made", shards=3, on_error="drop", name="mixed")
    whole = kr.data.prepare(kr.data.with_counts(log, on_error="drop"), tmp_path / "whole", shards=3, on_error="drop")
    assert contents(made) == contents(whole)
    assert made.report.dropped


def test_some_of_the_counts_or_two_prices(tmp_path: Path) -> None:
    from keras_ranking.engines import duckdb

    log = counted_log()
    folder = own_files(kr.data.Log(log.events.assign(item_views_1h=0.0), log.schema), tmp_path / "some")
    with pytest.raises(ValueError, match=r"all counts of its schema.*It has \['item_views_1h'\], not \['item_click_rate_all'"):
        duckdb.prepare(folder, log.schema, tmp_path / "made", shards=3)
    folder = tmp_path / "two"
    folder.mkdir()
    kr.data.with_counts(log).events.assign(price=1.0).to_parquet(folder / "a.parquet")
    with pytest.raises(ValueError, match="feature 'price' is read from column 'price, eur', and the log has another column 'price'"):
        duckdb.prepare(folder, log.schema, tmp_path / "made", shards=3)


def test_what_files_lack_is_named(tmp_path: Path) -> None:
    from keras_ranking.engines import duckdb

    log = mixed_log()
    files = as_files(log, tmp_path / "logs")
    with pytest.raises(FileNotFoundError, match="must name a file, a folder of .parquet files or a pattern"):
        duckdb.prepare(tmp_path / "none", log.schema, tmp_path / "made")
    other = log.schema.model_copy(update={"session": "visit"})
    with pytest.raises(ValueError, match="column 'visit' is not in all of the 3 files"):
        duckdb.prepare(files, other, tmp_path / "made")
    with pytest.raises(ValueError, match="`memory` must be at least 200 MB"):
        duckdb.prepare(files, log.schema, tmp_path / "made", memory=100)


_PREPARE = """
import sys
import keras_ranking as kr
from keras_ranking.data.shards import prepare
from keras_ranking.engines import duckdb
write = prepare.write_part
def slow(number, *rest):
    print(number, flush=True)
    import time; time.sleep(0.3)
    return write(number, *rest)
prepare.write_part = slow
duckdb.prepare(sys.argv[1], kr.Schema.load(sys.argv[2]), sys.argv[3], shards=4, name="mixed")
"""


@pytest.mark.release
def test_a_preparation_that_is_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    from keras_ranking.engines import duckdb

    log = mixed_log()
    files = as_files(log, tmp_path / "logs")
    log.schema.save(tmp_path / "schema.json")
    arguments = [sys.executable, "-c", _PREPARE, str(files), str(tmp_path / "schema.json"), str(tmp_path / "made")]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "1":
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert not (tmp_path / "made").exists()
    assert (tmp_path / "made.partial" / "result" / "00000.shard").is_file()
    before = (tmp_path / "made.partial" / "result" / "00000.shard").stat().st_mtime_ns
    made = duckdb.prepare(files, log.schema, tmp_path / "made", shards=4, name="mixed")
    assert (made.folder / "00000.shard").stat().st_mtime_ns == before
    assert contents(made) == contents(kr.data.prepare(log, tmp_path / "whole", shards=4))


def _killed_once(number: int, marker: str) -> int:
    """Ends the worker process that it runs in, the first time."""
    path = Path(marker)
    if number == 1 and not path.exists():
        path.write_text("killed")
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.skipif(not JAVA, reason=NO_SPARK)
def test_a_lost_worker_of_spark_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import partial

    from keras_ranking.engines import spark as engine

    if engine._imported().SparkSession.getActiveSession() is not None:
        engine._imported().SparkSession.getActiveSession().stop()
    session = engine.session("1g", **{"spark.sql.shuffle.partitions": "2", "spark.master": "local[2,4]"})
    try:
        log = mixed_log()
        files = as_files(log, tmp_path / "logs")
        run, marker = engine.run, str(tmp_path / "killed")

        def killing(spark: Any, function: Any, numbers: Any) -> Any:
            return run(spark, partial(_first_killed, function=function, marker=marker), numbers)

        monkeypatch.setattr(engine, "run", killing)
        made = engine.prepare_files(files, log.schema, tmp_path / "made", session, shards=3, name="mixed")
        assert Path(marker).exists()
        assert contents(made) == contents(kr.data.prepare(log, tmp_path / "whole", shards=3))
    finally:
        session.stop()


def _first_killed(number: int, function: Any, marker: str) -> Any:
    _killed_once(number, marker)
    return function(number)


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.skipif(not JAVA, reason=NO_SPARK)
def test_scores_by_spark_are_those_of_one_process(spark: Any, tmp_path: Path) -> None:
    """As `score-log --engine spark`: a worker loads the model and scores its shards."""
    from functools import partial

    from keras_ranking.engines import spark as engine

    log = kr.data.simulate(members=30, days=2, seed=0)
    shards = kr.data.prepare(log, tmp_path / "shards", shards=3)
    options = {"dim": 8, "num_layers": 1, "num_heads": 1, "row_length": 64}
    kr.training.train(shards, "cadet", tmp_path / "run", epochs=1, options=options, verbose=False)
    frames = []
    for name, run in (("here", None), ("spark", partial(engine.run, spark))):
        about = kr.training.score_log(tmp_path / "run", shards, tmp_path / name, run=run)
        assert about["rows"] == shards.events
        frames.append(pd.read_parquet(tmp_path / name).sort_values("row", ignore_index=True))
    for name in ("row", "request_id", "member_id"):
        assert frames[0][name].tolist() == frames[1][name].tolist()
    for task in ("click", "like"):
        np.testing.assert_allclose(frames[1][task], frames[0][task], rtol=1e-5)
    assert frames[0]["click"].std() > 0
