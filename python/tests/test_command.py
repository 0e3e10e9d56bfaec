"""``python -m bakapara``, byte by byte except for times."""

import json
import re
import subprocess
import sys

import pytest

from bakapara._process import BakaparaError, program

JOBS = '{"cmd": "exit 3", "z": null, "id": 7}\n{"cmd": "kill -9 $$"}\n{"cmd": "echo \\u00e9"}\n'
TIME = r'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?"'
UUID = r'"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"'


def run(*arguments, **kwargs):
    return subprocess.run([sys.executable, "-m", "bakapara", *arguments], capture_output=True, text=True, check=False, **kwargs)


def test_lines_are_those_of_the_old_command(tmp_path):
    done = run(input=JOBS, cwd=tmp_path)
    assert done.returncode == 0, "whatever jobs return"
    lines = {json.loads(line)["cmd"]: line for line in done.stdout.splitlines()}
    result = (
        rf'\{{"status": "ok", "received": {TIME}, "code": CODE, "engine_id": \d+, "started": {TIME}, "completed": {TIME}, '
        rf'"msg_id": {UUID}, "submitted": {TIME}, "pyerr": null, "host": "[^"]+", "elapsed": "0:00:\d\d(\.\d{{6}})?", "pyout": null\}}'
    )
    first = re.escape('{"cmd": "exit 3", "z": null, "id": 7, "result": ') + result.replace("CODE", "3") + r"\}"
    assert re.fullmatch(first, lines["exit 3"]), lines["exit 3"]
    assert re.fullmatch(re.escape('{"cmd": "kill -9 $$", "result": ') + result.replace("CODE", "-9") + r"\}", lines["kill -9 $$"])
    assert r"echo \u00e9" in lines["echo é"]
    log = done.stderr.splitlines()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    assert re.fullmatch(rf"{stamp} total 3 jobs on \d+ engines", log[0]), log
    assert any(re.fullmatch(rf"{stamp} \[\d/3\] returned 3 in 0:00:\d\d(\.\d{{6}})? sec on \S+: exit 3", line) for line in log), log
    assert re.fullmatch(rf"{stamp} completed", log[-1])


def test_files_by_their_old_flags(tmp_path):
    (tmp_path / "jobs").write_text(JOBS)
    done = run("-p", "default", "-i", "jobs", "-o", "results", "-l", "log", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len((tmp_path / "results").read_text().splitlines()) == 3
    assert (tmp_path / "log").read_text().splitlines()[-1].endswith(" completed")


def test_the_program_is_looked_for_by_its_name_and_then_by_its_older_one(monkeypatch, tmp_path):
    monkeypatch.delenv("MEZCAL_COORDINATOR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BakaparaError, match="no program `mezcal` on PATH"):
        program()
    for name in ("coordinator", "mezcal"):
        (tmp_path / name).touch(mode=0o755)
        assert program() == str(tmp_path / name)
