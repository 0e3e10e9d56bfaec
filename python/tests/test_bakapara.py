"""The class, on this machine."""

import asyncio
import doctest
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bakapara
from bakapara import Bakapara, BakaparaError


def alive(mark):
    """Processes whose command line has this mark, without zombies (proc_pid_stat(5))."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if mark in line and state not in "ZX" and int(pid) != os.getpid():
            found.append(int(pid))
    return found


def until(condition, limit=30.0):
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)


def test_the_documented_session():
    assert doctest.testmod(bakapara).failed == 0


def test_results_are_written_into_the_jobs(bp):
    jobs = [{"cmd": "exit %d" % n, "mine": n} for n in range(4)]
    assert bp.run(jobs) is True
    assert bp.join() is True
    assert [job["result"]["code"] for job in jobs] == [0, 1, 2, 3]
    assert [job["mine"] for job in jobs] == [0, 1, 2, 3]
    assert bp.finished == {0, 1, 2, 3}
    assert bp.ready() and not bp.successful()


def test_only_one_run_at_a_time(bp, tmp_path):
    gate = tmp_path / "gate"
    jobs = [{"cmd": f"until test -e {gate}; do sleep 0.05; done"}]
    assert not bp.ready(), "nothing has been run"
    assert bp.run(jobs) is True
    assert bp.run([{"cmd": "true"}]) is False
    assert not bp.ready()
    with pytest.raises(ValueError):
        bp.successful()
    bp.wait()
    assert "result" not in jobs[0]
    gate.touch()
    bp.wait(timeout=-1)
    assert jobs[0]["result"]["code"] == 0
    assert bp.run(jobs) is True, "what has run can run again"
    assert bp.join() and bp.successful()


def test_an_empty_list_has_ended(bp):
    assert bp.run([]) is True
    assert bp.ready() and bp.successful()
    assert list(bp) == []


def test_status_says_how_far_it_is(bp):
    bp.run([{"cmd": f"sleep 0.{n}"} for n in range(1, 5)])
    out = io.StringIO()
    bp.status(interval=0.1, fo=out)
    last, completed = out.getvalue().rsplit("\n", 2)[-3:-1]
    assert re.fullmatch(r"4/4 tasks finished after 0:00:00\.\d+", last.rpartition("\r")[2])
    assert re.fullmatch(r"4 tasks completed in 0:00:00\.\d+", completed)


def test_status_does_not_say_that_all_are_done_when_they_are_not(bp):
    bp.run([{"cmd": "sleep 600"}])
    out = io.StringIO()
    bp.status(interval=0.05, timeout=0.1, fo=out)
    assert "0/1 tasks finished" in out.getvalue() and "completed" not in out.getvalue()
    bp.abort()


def test_abort_kills(bp):
    mark = f"600.{os.getpid()}"
    jobs = [{"cmd": f"sleep {mark} & sleep {mark}"} for _ in range(8)]
    bp.run(jobs)
    until(lambda: len(alive(mark)) >= 8)
    bp.abort()
    assert bp.join(30) is True
    assert alive(mark) == []
    assert {job["result"]["status"] for job in jobs} == {"aborted"}
    assert bp.run([{"cmd": "echo again"}]) and bp.join() and bp.successful()


def test_single_jobs_are_cancelled(bp):
    jobs = [{"cmd": "sleep 600"}, {"cmd": "sleep 0.2"}, {"cmd": "trap 'exit 7' INT; while :; do sleep 0.05; done"}]
    bp.run(jobs)
    until(lambda: len(alive("while :; do sleep 0.05")) > 0)
    assert bp.cancel(jobs[0])["jobs"] == 1
    assert bp.cancel([jobs[2]], signal="INT")["jobs"] == 1
    assert bp.join(30)
    assert [job["result"]["code"] for job in jobs] == [-15, 0, 7]


def test_what_the_coordinator_refuses_is_an_exception(bp):
    bp.run([{"cmd": "sleep 600"}])
    for wrong in ({"signal": "NOPE"}, {"grace": -1}):
        with pytest.raises(BakaparaError):
            bp.cancel(**wrong)
    assert bp.hosts and bp.cancel(signal=signal.SIGINT, grace=1e-5)["jobs"] == 1


def test_a_callers_list_may_change_meanwhile(bp):
    jobs = [{"cmd": "test -e /nonexistent"}, {"cmd": "sleep 0.2; exit 4"}]
    first, second = jobs
    bp.run(jobs)
    jobs.pop(0)
    jobs.extend([{"cmd": "later"}, {"cmd": "still later"}])
    assert bp.join(30)
    assert (first["result"]["code"], second["result"]["code"], len(jobs)) == (1, 4, 3)
    assert all("result" not in job for job in jobs[1:])
    with pytest.raises(ValueError):
        bp.run([{"control": "close"}])


def test_who_is_interrupted_while_giving_jobs_can_leave():
    bp = Bakapara(slots=1)
    send, count = bp._process.send, 0

    def interrupted(data):
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        send(data)

    bp._process.send = interrupted
    with pytest.raises(KeyboardInterrupt), bp:
        bp.run([{"cmd": "sleep 600"}] * 3000)
    until(lambda: not bp._process.is_running)


def test_nobody_has_to_read_what_it_says(bp):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    before, sys.stderr = sys.stderr, Broken()
    try:
        bp.run([{"cmd": "true", "host": "nonexistent.example"}])
        with pytest.raises(BakaparaError):
            bp.cancel(signal="NOPE")
        bp.cancel()
        assert bp.join(30)
    finally:
        sys.stderr = before


def test_results_come_as_they_end(bp):
    jobs = [{"cmd": "sleep 0.4", "n": 0}, {"cmd": "true", "n": 1}, {"cmd": "sleep 0.2", "n": 2}]
    bp.run(jobs)
    assert [job["n"] for job in bp] == [1, 2, 0]

    async def collect():
        bp.run(jobs)
        return [job["n"] async for job in bp]

    assert asyncio.run(collect()) == [1, 2, 0]


def test_map_quotes(bp, tmp_path):
    names = ["a b", "it's", "$HOME", "é", "-n"]
    jobs = bp.map("printf '<%s>' {}", names, cd=str(tmp_path))
    assert [job["result"]["stdout_tail"] for job in jobs] == [f"<{name}>" for name in names]
    assert bp.map("echo", ["x"])[0]["result"]["stdout_tail"] == "x\n"


def test_names_that_are_no_text_are_those_of_python(tmp_path):
    name = b"caf\xe9"
    (tmp_path / os.fsdecode(name)).write_text("coffee")
    with Bakapara(slots=1, cd=tmp_path, env={"V": os.fsdecode(b"\xff")}) as bp:
        assert bp.map("cat", [name, os.fsdecode(name), Path(os.fsdecode(name))]) and bp.successful()
        assert [job["result"]["stdout_tail"] for job in bp.jobs] == ["coffee"] * 3
        jobs = [{"argv": ["sh", "-c", 'printf %s "$1$V" | od -An -tx1', "sh", os.fsdecode(name)]}, {"argv": ["true", "\ud800"]}]
        assert bp.run(jobs) and bp.join(30)
    assert jobs[0]["result"]["stdout_tail"].split() == ["63", "61", "66", "e9", "ff"]
    assert "\\ud800 alone is half of a character" in jobs[1]["result"]["error"]


def test_what_is_wrong_with_a_job_is_its_result(bp):
    jobs = [{"argv": ["/nowhere/at/all"]}, {"nothing": 1}, {"cmd": "true", "cd": "/nowhere"}, {"cmd": "true"}]
    bp.run(jobs)
    assert bp.join(30)
    assert [job["result"]["status"] for job in jobs] == ["error", "error", "error", "ok"]
    assert "/nowhere/at/all" in jobs[0]["result"]["error"]
    with pytest.raises(TypeError):
        bp.run(["true"])
    with pytest.raises(TypeError):
        bp.run([{"cmd": "true"}, {"cmd": object()}])
    assert bp.jobs is jobs and bp.ready(), "nothing was started"


def test_jobs_come_after_others_of_their_list(bp, tmp_path):
    log = tmp_path / "log"
    say = f"echo {{}} >> {log}"
    bp.run([{"cmd": "true"}] * 3)
    assert bp.join(30)
    jobs = [
        {"cmd": say.format("last"), "after": ["first", 3]},
        {"cmd": f"sleep 0.2; {say.format('first')}", "id": "first"},
        {"cmd": say.format("middle"), "after": "first"},
        {"cmd": "true", "after": 6},
        {"cmd": "true", "after": [4]},
        {"cmd": "exit 3", "id": 17},
        {"cmd": "true", "after": [17]},
    ]
    given = [dict(job) for job in jobs]
    bp.run(jobs)
    assert bp.join(30)
    assert log.read_text().split() == ["first", "middle", "last"]
    assert [job["result"]["outcome"] for job in jobs] == ["exited"] * 3 + ["skipped", "skipped", "exited", "skipped"]
    assert [jobs[n]["result"]["error"][:38] for n in (3, 4, 6)] == [f"job {n}, which it comes after, did not s"[:38] for n in (6, 4, 6)]
    assert [{key: value for key, value in job.items() if key != "result"} for job in jobs] == given

    gate = tmp_path / "gate"
    jobs = [{"cmd": "true", "after": 2}, {"cmd": f"until test -e {gate}; do sleep 0.05; done"}, {"cmd": "sleep 600"}]
    bp.run(jobs)
    assert bp.cancel(jobs[2])["jobs"] == 1, "numbers are those of the list"
    gate.touch()
    assert bp.join(30)
    assert [job["result"]["outcome"] for job in jobs] == ["exited", "exited", "cancelled"]


def test_an_after_that_cannot_be_is_said_before_anything_starts(bp):
    one, two = {"cmd": "true", "id": "same"}, {"cmd": "true"}
    for jobs, why in (
        ([{**two, "after": 2}], r"job 1: .*no job '2'"),
        ([two, {**two, "after": ["x"]}], r"job 2: .*no job 'x'"),
        ([one, one, {**two, "after": "same"}], r"job 3: .*several jobs"),
        ([{**two, "after": 2}, {**two, "after": 1}, two], r"circle among 1, 2"),
        ([{**two, "after": 1}], r"circle among 1"),
    ):
        with pytest.raises(ValueError, match=why):
            bp.run(jobs)
    assert not bp.ready(), "nothing was started"
    jobs = [two, {**two, "after": [None]}]
    assert bp.run(jobs) and bp.join(30)
    assert "after" in jobs[1]["result"]["error"]


def test_what_run_and_map_do_not_take_is_named(bp):
    with pytest.raises(TypeError, match="list of dictionaries, not generator"):
        bp.run({"cmd": "true"} for _ in range(2))
    with pytest.raises(TypeError, match="not one dictionary"):
        bp.run({"cmd": "true"})
    with pytest.raises(TypeError, match="functions do not run here"):
        bp.map(len, [[]])
    with pytest.raises(TypeError, match="not list"):
        bp.map(["echo"], [1])


def test_who_has_been_shut_down_says_so(bp):
    bp.map("echo", [1])
    bp.shutdown()
    for call in (lambda: bp.run([]), lambda: bp.run([{"cmd": "true"}]), lambda: bp.map("echo", [1]), lambda: bp.hosts, bp.cancel):
        with pytest.raises(BakaparaError, match="has been shut down"):
            call()
    bp.shutdown()


def test_map_fills_places_from_tuples(bp):
    pairs = [("a b", 1), ("$HOME", "2")]
    tails = lambda jobs: [job["result"]["stdout_tail"] for job in jobs]
    assert tails(bp.map("printf '<%s>' {1} {0} {1}", pairs)) == ["<1><a b><1>", "<2><$HOME><2>"]
    assert tails(bp.map("printf '<%s>' {} {}", pairs)) == ["<a b><1>", "<$HOME><2>"]
    assert tails(bp.map("printf '<%s>'", pairs)) == ["<a b><1>", "<$HOME><2>"]
    assert tails(bp.map("set -- x; printf '<%s>' ${1}{0}", [("{0}",)])) == ["<x{0}>"]
    assert tails(bp.map("echo a{0} {}", ["x"])) == ["a{0} x\n"], "an item that is no tuple has no elements"
    for template in ("echo {0} {2}", "echo {}", "echo {} {0}"):
        with pytest.raises(ValueError, match="echo"):
            bp.map(template, pairs)


def test_an_interrupted_request_leaves_its_answer_to_nobody(bp):
    """The interrupt comes when the request has been made; its answer comes when another one is waited for."""
    mark = f"602.{os.getpid()}"
    jobs = [{"cmd": f"trap '' TERM; sleep {mark} & wait; wait"} for _ in range(2)] + [{"cmd": "sleep 600"}]
    bp.run(jobs)
    until(lambda: len(alive(mark)) >= 2)
    wait_for = bp._wait_for

    def interrupted(*_):
        bp._wait_for = wait_for
        raise KeyboardInterrupt

    bp._wait_for = interrupted
    with pytest.raises(KeyboardInterrupt):
        bp.cancel(jobs[:2], grace=0.5)
    bp._wait_for = interrupted
    with pytest.raises(KeyboardInterrupt):
        bp.cancel(jobs[:2], signal="NOPE")
    assert bp.cancel(jobs[2]) == {"jobs": 1, "killed": 0, "survivors": 0, "unreachable": 0}
    assert bp.join(30)
    assert bp.cancel()["jobs"] == 0 and bp.hosts


def test_engines_and_hosts(bp):
    assert len(bp) == 4
    assert sorted(bp.hosts) == [0, 1, 2, 3]
    jobs = [{"cmd": "true"}]
    assert bp.run(jobs, targets=[0, 3]) and bp.join()
    assert jobs == [{"cmd": "true", "result": jobs[0]["result"]}], "the caller's jobs are as they were"
    with pytest.raises(IndexError):
        bp.run(jobs, targets=7)


def test_compat_results_are_the_old_ones():
    with Bakapara(slots=1, compat=True) as bp:
        jobs = bp.map("exit {}", [3])
    keys = "status received code engine_id started completed msg_id submitted pyerr host elapsed pyout".split()
    result = jobs[0]["result"]
    assert list(result) == keys and result["code"] == 3
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?", result["started"])
    assert re.fullmatch(r"0:00:0\d(\.\d{6})?", result["elapsed"])


def test_the_environment_and_the_directory(tmp_path):
    with Bakapara(slots=1, env={"GREETING": "good day"}, cd=tmp_path) as bp:
        jobs = bp.map('echo "$GREETING" in $(pwd) {}', [""])
    assert jobs[0]["result"]["stdout_tail"].strip() == f"good day in {tmp_path.resolve()}"


def test_who_is_not_there_is_named(monkeypatch, tmp_path):
    with pytest.raises(BakaparaError, match="no profile"):
        Bakapara(profile="nobody-has-this")
    monkeypatch.setenv("MEZCAL_COORDINATOR", str(tmp_path / "none"))
    with pytest.raises(BakaparaError, match="none"):
        Bakapara()


def test_a_coordinator_that_is_killed_is_an_exception(bp):
    bp.run([{"cmd": "sleep 600"}])
    bp._process._child.kill()
    with pytest.raises(BakaparaError):
        bp.join(30)


SCRIPT = """
import sys
from bakapara import Bakapara
bp = Bakapara(slots=2)
bp.run([{'cmd': 'sleep %s'}] * 2)
print('runs', flush=True)
%s
"""


def test_what_runs_ends_with_python():
    mark = f"601.{os.getpid()}"
    child = subprocess.Popen([sys.executable, "-c", SCRIPT % (mark, "bp.join()")], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"runs\n"
    until(lambda: len([p for p in alive(mark) if b"python" not in Path(f"/proc/{p}/cmdline").read_bytes()]) >= 2)
    child.kill()
    child.wait()
    until(lambda: alive(mark) == [])


def test_an_interrupt_ends_the_display_and_not_the_jobs():
    body = "bp.status()\nprint('display over', bp.ready(), flush=True)\nbp.join()\nprint(bp.successful())\nbp.shutdown()"
    child = subprocess.Popen([sys.executable, "-c", SCRIPT % ("2", body)], stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout.readline() == b"runs\n"
    assert child.stdout.read(1) == b"\r", "the display has begun"
    os.killpg(child.pid, signal.SIGINT)
    rest = child.stdout.read()
    assert child.wait() == 0, rest
    assert b"display over False" in rest and rest.endswith(b"True\n")


def test_html_shows_what_has_failed(bp):
    bp.map("echo '<b>' >&2; exit {}", [0, 3])
    page = bp._repr_html_()
    assert "value='2' max='2'" in page and "1 failed" in page and "&lt;b&gt;" in page and "<b>" not in page


def test_a_table(bp):
    pandas = pytest.importorskip("pandas")
    bp.run([{"cmd": "exit 0"}, {"cmd": "exit 3", "n": 1}, {"cmd": "true", "after": 2}])
    assert bp.join(30)
    frame = bp.frame()
    assert isinstance(frame, pandas.DataFrame) and list(frame["code"][:2]) == [0, 3] and frame["code"].isna()[2]
    assert frame["elapsed"].mean() > pandas.Timedelta(0) and frame["started"].isna()[2]
    assert frame["elapsed"].dt.total_seconds()[0] == pytest.approx(frame["elapsed_seconds"][0])
    assert all(str(frame[name].dt.tz) == "UTC" for name in ("submitted", "started", "completed", "received"))
    assert (frame["completed"] >= frame["started"])[:2].all() and frame.groupby("cmd")["attempt"].sum()["exit 3"] == 1
    assert frame["stdout_bytes"].dtype == "Int64" and frame["stdout_bytes"][0] == 0 and frame["stdout_bytes"].isna()[2]
    assert frame["code"].dtype == frame["survivors"].dtype == "Int64" and frame["signal"].isna().all()
    bp.run([])
    assert len(bp.frame()) == 0


def test_a_table_of_the_old_results():
    pandas = pytest.importorskip("pandas")
    with Bakapara(slots=1, compat=True) as bp:
        bp.run([{"cmd": "true"}, {"nothing": 1}])
        bp.join(30)
        frame = bp.frame()
    assert frame["elapsed"].mean() > pandas.Timedelta(0) and frame["started"].dt.tz is None
    assert frame["code"][0] == 0 and frame["code"].isna()[1]


def test_many_jobs_pass_through(bp):
    jobs = [{"argv": ["true"], "n": n} for n in range(3000)]
    bp.run(jobs)
    assert bp.join(120) and bp.successful()
    assert all(job["result"]["code"] == 0 for job in jobs)
