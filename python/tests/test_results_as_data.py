"""Results files are loaded by programs that read tables, whether or not the first jobs succeeded (docs/results.md)."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import pytest

JOBS = [
    {"cmd": "exit 3", "id": "code"},
    {"cmd": "kill -9 $$", "id": "signal"},
    {"cmd": "sleep 60", "id": "time", "timeout": 0.2},
    {"cmd": "true", "id": "start", "cd": "/no/such/directory"},
    {"cmd": "true", "id": "skip", "after": "code"},
]
#: DuckDB infers types from 20,480 lines, polars from 100, pyarrow from a block of a MiB.
FIRST = 30_000


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A file of many successes, and then one result of each other kind."""
    place = tmp_path_factory.mktemp("results")

    def run(jobs, status):
        text = "".join(json.dumps(job) + "\n" for job in jobs)
        coordinator = os.environ.get("MEZCAL_COORDINATOR", "coordinator")
        done = subprocess.run([coordinator, "run", "-q", "-"], input=text, capture_output=True, text=True, cwd=place)
        assert done.returncode == status, done.stderr
        return done.stdout

    path = place / "r.jsonl"
    path.write_text(run([{"cmd": "true", "id": "ok"}], 0) * FIRST + run(JOBS, 1))
    return str(path)


def test_duckdb(results):
    duckdb = pytest.importorskip("duckdb")
    query = "select count(*), count(result.error), count(result.signal), sum(result.elapsed_seconds) > 0.2 from read_json('{}', sample_size=-1)"
    assert duckdb.sql(query.format(results)).fetchall() == [(FIRST + 5, 3, 2, True)]


def test_polars(results):
    polars = pytest.importorskip("polars")
    frame = polars.read_ndjson(results, infer_schema_length=None).unnest("result")
    assert (frame.height, frame["error"].count(), frame["elapsed_seconds"].sum() > 0.2) == (FIRST + 5, 3, True)


def test_pandas(results):
    pandas = pytest.importorskip("pandas")
    frame = pandas.json_normalize(pandas.read_json(results, lines=True)["result"])
    assert (len(frame), frame["error"].count(), frame["elapsed_seconds"].sum() > 0.2) == (FIRST + 5, 3, True)


def test_pyarrow(results):
    pyarrow = pytest.importorskip("pyarrow.json")
    table = pyarrow.read_json(results).column("result").combine_chunks()
    assert (len(table), len(table) - table.field("error").null_count) == (FIRST + 5, 3)


def test_csvkit(results):
    pytest.importorskip("csvkit")
    command = [sys.executable, "-c", "from csvkit.utilities.in2csv import launch_new_instance as run; run()"]
    text = subprocess.run([*command, "-I", "-f", "ndjson", results], capture_output=True, text=True, check=True).stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert (len(rows), sorted(row["result/code"] for row in rows)[:5]) == (FIRST + 5, ["", "", "-15", "-9", "0"])
    assert sum(float(row["result/elapsed_seconds"] or 0) for row in rows) > 0.2


@pytest.mark.skipif(shutil.which("mlr") is None, reason="Miller is not installed")
def test_miller(results):
    command = ["mlr", "--ijsonl", "--ojsonl", "filter", '$result["code"] != 0', results]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {json.loads(line)["id"] for line in lines} == {job["id"] for job in JOBS}
