#!/usr/bin/env bash
# csvkit 2.1.0: a column of exit codes in which there are only 0 and 1 becomes False and True.
#
# Most people expect numbers to stay numbers when in2csv turns lines of JSON, which has types, into CSV, and when csvjson turns a job log of
# GNU Parallel into JSON. Seen: code 0 is False and code 1 is True, so the one word that reads like "good" stands at the failures. As soon as one code in
# the file is 2 or more, the same column has numbers. With -I (no inference) in2csv keeps them; csvjson -I makes them text.
#
# Exits 1 if that changes. Needs python3 with venv and PyPI; leaves nothing behind.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q csvkit==2.1.0
cd "$dir"
printf '{"id": "a", "code": 0}\n{"id": "b", "code": 1}\n' >two.jsonl
printf '{"id": "a", "code": 0}\n{"id": "b", "code": 1}\n{"id": "c", "code": 2}\n' >three.jsonl
printf 'Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n' >joblog
printf '%s\t:\t1700000000.000\t0.500\t0\t0\t%s\t0\t%s\n' 1 0 true 2 1 false >>joblog
two=$(venv/bin/in2csv -f ndjson two.jsonl | tr '\n' ' ')
plain=$(venv/bin/in2csv -I -f ndjson two.jsonl | tr '\n' ' ')
three=$(venv/bin/in2csv -f ndjson three.jsonl | tr '\n' ' ')
log=$(venv/bin/csvjson -t joblog | grep -o '"Exitval": [^,]*' | tr '\n' ' ')
venv/bin/in2csv --version
printf 'codes 0, 1:        %s\ncodes 0, 1 and -I: %s\ncodes 0, 1, 2:     %s\njob log:           %s\n' "$two" "$plain" "$three" "$log"
[ "$two" = "id,code a,False b,True " ] && [ "$plain" = "id,code a,0 b,1 " ] && [ "$three" = "id,code a,0 b,1 c,2 " ] &&
    [ "$log" = '"Exitval": false "Exitval": true ' ]
