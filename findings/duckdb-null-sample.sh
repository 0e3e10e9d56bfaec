#!/usr/bin/env bash
# DuckDB 2.0.1: a key that is null in the first 20,480 lines of a JSON file gets the type "NULL", and text that comes later is read as null.
#
# Most people expect of read_json either the text, in a column of JSON, or an error that names the line, as for a number that turns out to be text. Seen:
# no error; the text is gone from every query, and count() of it is 0, at the top as in nested objects. With sample_size=-1 it is there.
#
# Exits 1 if that changes. Needs python3 with venv and PyPI; leaves nothing behind.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q duckdb==2.0.1
"$dir/venv/bin/python" - "$dir/lines.json" <<'PYTHON'
import duckdb, sys

file = sys.argv[1]
with open(file, "w") as out:
    out.write('{"a": {"b": null}, "top": null}\n' * 20480)
    out.write('{"a": {"b": "text"}, "top": "text"}\n')
print("DuckDB", duckdb.__version__)
query = "select typeof(a.b), count(a.b), typeof(top), count(top) from read_json('{}'{}) group by all order by all"
sampled, whole = (duckdb.sql(query.format(file, more)).fetchall() for more in ("", ", sample_size=-1"))
print("as it samples:    ", sampled)
print("sample_size=-1:   ", whole)
sys.exit(0 if sampled == [('"NULL"', 0, '"NULL"', 0)] and whole == [('VARCHAR', 1, 'VARCHAR', 1)] else 1)
PYTHON
