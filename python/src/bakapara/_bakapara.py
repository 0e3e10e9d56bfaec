"""The class."""

from __future__ import annotations

import asyncio
import collections
import datetime
import heapq
import html
import os
import re
import shlex
import signal as signals
import sys
import threading
import time
from typing import Any, AsyncIterator, Callable, Deque, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, TextIO, Tuple, Union

from ._process import BakaparaError, NoEngines, Process, lines

#: A job: ``cmd`` or ``argv``, other keys that the coordinator knows (``coordinator help run``), and any keys of your own.
Job = Dict[str, Any]

#: The most jobs that are written together.
_LINES = 1000
#: The most failing jobs that a notebook shows.
_SHOWN = 10
#: Columns of a table with moments, and columns with numbers, each with the pandas type that allows missing values.
_MOMENTS = ("started", "completed", "submitted", "received")
_NUMBERS = {
    **dict.fromkeys(("code", "engine_id", "signal", "attempt", "max_rss_bytes", "memory_peak_bytes"), "Int64"),
    **dict.fromkeys(("leftovers_killed", "killed", "survivors", "stdout_bytes", "stderr_bytes"), "Int64"),
    **dict.fromkeys(("elapsed_seconds", "user_seconds", "system_seconds", "clock_offset"), "float64"),
}


class Bakapara:
    """A cluster that runs lists of shell commands.

    Args:
        profile: Name of a profile (``~/.config/mezcal/profiles/NAME.toml``); without one, jobs run on this machine.
        slots: Jobs at a time on this machine (default: its CPUs).
        cd: Directory of jobs without ``cd`` (default: the present one).
        env: Environment variables for all jobs.
        compat: Results exactly as the old module wrote them: twelve keys, times without a zone.
        timeout: Seconds to wait for a first engine.

    Raises:
        NoEngines: No engine is there to run jobs.
        BakaparaError: The coordinator cannot be reached, or refuses us.

    Running jobs end with this process, however it ends; :func:`bakapara.submit` is for jobs that shall go on.
    """

    def __init__(
        self,
        profile: Optional[str] = None,
        *,
        slots: Optional[int] = None,
        cd: Union[str, "os.PathLike[str]", None] = None,
        env: Optional[Mapping[str, str]] = None,
        compat: bool = False,
        timeout: float = 60.0,
    ) -> None:
        #: The jobs of the last run; results are written into them.
        self.jobs: List[Job] = []
        #: Places in the list of the jobs that have ended.
        self.finished: set[int] = set()
        self._changed = threading.Condition()
        self._engines = 0
        self._ever_ran = False
        self._given = 0
        # The jobs of the last run as they were given: the caller's list may change.
        self._jobs: List[Job] = []
        # Places of its jobs in the order of writing, and the position of each place in that order.
        self._written: Sequence[int] = range(0)
        self._when: Sequence[int] = range(0)
        self._order: List[int] = []
        self._unwritten: Deque[Tuple[int, Dict[str, Any]]] = collections.deque()
        self._began = self._ended = time.monotonic()
        # The number of the request under way, and its answer.
        self._request = 0
        self._answer: Optional[Dict[str, Any]] = None
        self._wakers: List[Callable[[], None]] = []
        self._over = False
        self._asking = threading.Lock()
        arguments = ["--local"] if profile is None else ["-p", profile]
        if slots is not None:
            arguments += ["-j", str(slots)]
        if cd is not None:
            arguments += ["--cd", os.fspath(cd)]
        for name, value in (env or {}).items():
            if "=" in name:
                raise ValueError(f"{name!r} is no name of an environment variable: it has a =")
            arguments += ["--env", f"{name}={value}"]
        self._compat = compat
        if compat:
            arguments += ["--compat", "bakapara"]
        self._process = Process(arguments, self._hear, self._end)
        try:
            if not self._wait_for(lambda: self._engines > 0, timeout):
                raise NoEngines(f"no engine within {timeout:g} s")
        except BaseException:
            self._process.kill()
            raise

    # The coordinator's messages, on a thread of their own.

    def _hear(self, said: Dict[str, Any]) -> None:
        event = said.get("event")
        if event in ("notice", "refused", "lost", "connected"):
            _say(f"bakapara: {said.get('text', event)}")
        with self._changed:
            if event is None:
                first = self._given - len(self._jobs)
                index = self._written[said["job"] - 1 - first]
                self._unwritten.append((index, self._in_list(said["result"], first)))
                self._order.append(index)
                self._ended = time.monotonic()
            elif event == "fleet":
                self._engines = said["engines"]
            # An answer to an interrupted request is dropped. A refusal of everything names no request.
            elif said.get("request", self._request if event == "refused" else None) == self._request:
                self._answer = said
            self._notify()

    def _end(self) -> None:
        with self._changed:
            self._over = True
            self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        for wake in self._wakers:
            wake()

    def _in_list(self, result: Dict[str, Any], first: int) -> Dict[str, Any]:
        """A result with numbers of jobs as in the list: the stream counts the jobs of all runs."""
        skipped = _COMES_AFTER.match(result.get("error") or "")
        if skipped is not None and result.get("outcome") == "skipped":
            number = self._written[int(skipped[1]) - 1 - first] + 1
            result["error"] = f"job {number}{skipped[2]}"
        return result

    # Waiting.

    def _wait_for(self, condition: Callable[[], bool], timeout: Optional[float]) -> bool:
        """Waits until the condition is true, for so many seconds (``None`` or less than 0: for ever). False: it is not."""
        deadline = None if timeout is None or timeout < 0 else time.monotonic() + timeout
        with self._changed:
            while not condition():
                if self._over:
                    raise self._process.error()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                # On some systems Ctrl-C does not interrupt a wait without a timeout.
                self._changed.wait(1.0 if left is None else min(left, 1.0))
            return True

    def _is_done(self) -> bool:
        return len(self._order) == len(self._jobs)

    def _write_results(self) -> None:
        """Puts the results that have come into the caller's jobs, only during a call of the caller."""
        while self._unwritten:
            index, result = self._unwritten.popleft()
            self._jobs[index]["result"] = result
            self.finished.add(index)

    # Methods of the old module.

    def run(self, jobs: List[Job], targets: Union[None, int, str, Sequence[int]] = None) -> bool:
        """Starts jobs. Their results are written into them when they have ended, as ``job['result']``.

        Args:
            jobs: A list of dictionaries. ``after`` in one names others of this list that have to succeed first, each by its ``id``
                or by its number, from 1.
            targets: Numbers of engines on whose hosts they shall run (:attr:`hosts`); ``None`` or ``'all'``: any.

        Returns:
            False if jobs of an earlier run have not ended; nothing is started then.

        Raises:
            TypeError: ``jobs`` is not a list, or a job is not a dictionary or has a value that JSON cannot have.
            ValueError: A job has a key ``control`` and no command: the coordinator would not take it for a job. Or its ``after`` names
                a job outside the list, or itself, also through others.
            BakaparaError: The coordinator has ended, or :meth:`shutdown` has been called.
        """
        if isinstance(jobs, Mapping):
            raise TypeError("jobs are a list of dictionaries, not one dictionary: run([job])")
        if not hasattr(jobs, "__getitem__") or not hasattr(jobs, "__len__"):
            raise TypeError(
                f"jobs are a list of dictionaries, not {type(jobs).__name__}: results are written into them, so keep a list, jobs = list(...)"
            )
        if not self._process.is_running:
            raise self._process.error()
        if not self._is_done():
            return False
        for job in jobs:
            if not isinstance(job, Mapping):
                raise TypeError(f"a job is a dictionary, not {type(job).__name__}")
            if "control" in job and "cmd" not in job and "argv" not in job:
                raise ValueError(f"a job needs `cmd` or `argv`: {job!r}")
        hosts = self._hosts_of(targets)
        # Before any job is started: a job that cannot be written raises here.
        before = {} if self._compat else _before(jobs)
        sequence, when = _in_order(len(jobs), before)

        def line(index: int) -> Job:
            job = _placed(jobs[index], hosts)
            return {**job, "after": [self._given + when[i] + 1 for i in before[index]]} if index in before else job

        written = [lines(map(line, sequence[start : start + _LINES])) for start in range(0, len(jobs), _LINES)]
        self._write_results()
        with self._changed:
            self.jobs, self._jobs, self.finished, self._order = jobs, list(jobs), set(), []
            self._written, self._when = sequence, when
            self._given += len(jobs)
            self._ever_ran = True
            self._began = self._ended = time.monotonic()
        try:
            for data in written:
                self._process.send(data)
        except BaseException:
            # Only some of the jobs have been sent: the others would never end.
            self._process.kill()
            raise
        return True

    def wait(self, timeout: Optional[float] = 1e-3) -> None:
        """Writes the results that have come, after so many seconds or when all have come (less than 0: only then)."""
        self.join(timeout)

    def status(self, interval: float = 1.0, timeout: Optional[float] = -1, fo: Optional[TextIO] = None) -> None:
        """Shows the progress until all jobs have ended. Ctrl-C, or a notebook's Interrupt, ends the display and not the jobs."""
        deadline = None if timeout is None or timeout < 0 else time.monotonic() + timeout
        show, end = _display(self, fo or sys.stdout)
        try:
            while True:
                left = interval if deadline is None else min(interval, max(0.0, deadline - time.monotonic()))
                done = self.join(left)
                show()
                if done or (deadline is not None and time.monotonic() >= deadline):
                    break
        except KeyboardInterrupt:
            pass
        end()

    def ready(self) -> bool:
        """Whether there has been a run, and all of its jobs have ended."""
        return self._ever_ran and self.join(0)

    def successful(self) -> bool:
        """Whether all jobs have succeeded.

        Raises:
            ValueError: Not all jobs have ended.
        """
        if not self.ready():
            raise ValueError("not all jobs have ended")
        return all(_succeeded(job) for job in self._jobs)

    def abort(self, **_: Any) -> None:
        """Kills the running jobs; no other job of the run starts."""
        self.cancel()

    def interrupt(self) -> None:
        """Like :meth:`abort`, with INT, and KILL after two seconds."""
        self.cancel(signal="INT")

    def shutdown(self, **_: Any) -> Optional[bool]:
        """Cancels the jobs that have not ended, and leaves. Returns False if there has been no run."""
        if self._process.is_running:
            try:
                if not self._is_done():
                    self.cancel()
                self.join()
                self._process.send(lines([{"control": "close"}]))
                self._process.end()
            except BakaparaError:
                # The coordinator has ended by itself.
                pass
        return None if self._ever_ran else False

    def __len__(self) -> int:
        """The present number of engines."""
        return self._engines

    def __bool__(self) -> bool:
        return True

    @property
    def hosts(self) -> Dict[int, str]:
        """The host of each engine, by the engine's number."""
        found = self._ask({"control": "hosts"})["hosts"]
        return {host["first_engine"] + slot: host["name"] for host in found for slot in range(host["slots"])}

    def _ask(self, line: Dict[str, Any]) -> Dict[str, Any]:
        """Waits for the answer to a request. There is one at a time, each with a number: the answer to an interrupted one is dropped."""
        with self._asking:
            with self._changed:
                self._request, self._answer = self._request + 1, None
            self._process.send(lines([{**line, "request": self._request}]))
            self._wait_for(lambda: self._answer is not None, None)
            answer: Dict[str, Any] = self._answer or {}
        if answer.get("event") == "refused":
            raise BakaparaError(str(answer["text"]))
        return answer

    # Methods that the old module does not have.

    def join(self, timeout: Optional[float] = None) -> bool:
        """Waits until all jobs have ended, or for so many seconds. Writes the results that have come. True if that was all."""
        try:
            return self._wait_for(self._is_done, timeout)
        finally:
            self._write_results()

    def cancel(
        self, jobs: Union[None, Job, Iterable[Job]] = None, *, grace: float = 2.0, signal: Union[None, int, str] = None
    ) -> Dict[str, int]:
        """Kills jobs of the run (default: all that have not ended), and waits for the outcome.

        Args:
            jobs: One or several of the dictionaries that were given to :meth:`run`.
            grace: Seconds between the signal and KILL.
            signal: The signal (default: TERM), by name or number, which all processes of a job get.

        Returns:
            The numbers of ``jobs`` that had not ended, of processes that were ``killed``, of ``survivors``, and of jobs that are
            ``unreachable``.

        Raises:
            BakaparaError: The coordinator refuses the cancel, or has ended.
        """
        if jobs is None:
            indices: Iterable[int] = set(range(len(self._jobs))) - set(self._order)
        else:
            places = {id(job): index for index, job in enumerate(self._jobs)}
            wanted = [jobs] if isinstance(jobs, Mapping) else list(jobs)
            indices = [places[id(job)] for job in wanted if id(job) in places]
        first = self._given - len(self._jobs) + 1
        numbers = sorted(first + self._when[index] for index in indices)
        line: Dict[str, Any] = {"control": "cancel", "jobs": numbers, "grace": f"{grace:.6f}s"}
        if signal is not None:
            line["signal"] = signals.Signals(signal).name if isinstance(signal, int) else signal
        answer = self._ask(line)
        return {key: answer[key] for key in ("jobs", "killed", "survivors", "unreachable")}

    def map(self, template: str, items: Iterable[Any], **keys: Any) -> List[Job]:
        """Runs a command for each item, and returns the jobs when they have ended.

        ``{}`` in the template stands for the item, quoted for the shell; without one, the item comes last. If items are tuples, ``{0}``,
        ``{1}`` and so on stand for their elements, or ``{}`` for one after the other. Further arguments are keys of every job.

        Raises:
            TypeError: The template is not a text.
            ValueError: The template and a tuple do not fit.
            BakaparaError: Jobs of an earlier run have not ended.
        """
        if not isinstance(template, str):
            what = "Python functions do not run here: put it into a script" if callable(template) else f"not {type(template).__name__}"
            raise TypeError(f"map takes a command as text, like 'gzip {{}}'; {what}")
        jobs = [dict(keys, cmd=_filled(template, item)) for item in items]
        if not self.run(jobs):
            raise BakaparaError("jobs of an earlier run have not ended")
        self.join()
        return jobs

    def __iter__(self) -> Iterator[Job]:
        """The jobs of the run, each when it has ended."""
        jobs, order, seen = self._jobs, self._order, 0
        while seen < len(jobs):
            self._wait_for(lambda: len(order) > seen, None)
            self._write_results()
            yield jobs[order[seen]]
            seen += 1

    async def __aiter__(self) -> AsyncIterator[Job]:
        """The jobs of the run, each when it has ended; the event loop goes on meanwhile."""
        loop, came = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(came.set)
            except RuntimeError:
                # The event loop is closed.
                pass

        jobs, order, seen = self._jobs, self._order, 0
        with self._changed:
            self._wakers.append(wake)
        try:
            while seen < len(jobs):
                came.clear()
                if len(order) > seen:
                    self._write_results()
                    yield jobs[order[seen]]
                    seen += 1
                elif self._over:
                    raise self._process.error()
                else:
                    await came.wait()
        finally:
            with self._changed:
                self._wakers.remove(wake)

    def __enter__(self) -> "Bakapara":
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()

    def frame(self) -> Any:
        """The jobs and their results as a table (a ``pandas.DataFrame``), one row for each job.

        ``elapsed`` is a timedelta; ``submitted``, ``started``, ``completed`` and ``received`` are datetimes in UTC (with ``compat``: local
        ones without a zone, as in the results); ``code`` and counts are whole numbers, and absent values are missing (``NA``, ``NaT``).

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas  # type: ignore[import-untyped,unused-ignore]

        self.join(0)
        rows = [{**{k: v for k, v in job.items() if k != "result"}, **job.get("result", {})} for job in self._jobs]
        frame = pandas.DataFrame(rows)
        for name in _MOMENTS:
            if name in frame:
                frame[name] = pandas.to_datetime(frame[name], format="ISO8601", utc=not self._compat)
        if "elapsed" in frame:
            frame["elapsed"] = pandas.to_timedelta(frame["elapsed"])
        for name, kind in _NUMBERS.items():
            if name in frame:
                frame[name] = pandas.to_numeric(frame[name]).astype(kind)
        return frame

    def progress(self) -> str:
        """The progress in words."""
        after = datetime.timedelta(seconds=(self._ended if self._is_done() else time.monotonic()) - self._began)
        return f"{len(self._order)}/{len(self._jobs)} tasks finished after {after}"

    def _repr_html_(self) -> str:
        """For notebooks: a bar, and the first jobs that have failed."""
        failed = [job for job in self._jobs if "result" in job and not _succeeded(job)]
        parts = [
            f"<progress value='{len(self._order)}' max='{max(1, len(self._jobs))}' style='width: 24em'></progress>",
            f"<div>{html.escape(self.progress())} on {len(self)} engines; {len(failed)} failed</div>",
        ]
        if failed:
            cells = ("<tr><td style='text-align: left'><code>{}</code></td><td>{}</td><td style='text-align: left'><pre>{}</pre></td></tr>")
            rows = [cells.format(*(html.escape(str(c)) for c in _described(job))) for job in failed[:_SHOWN]]
            more = f"<div>and {len(failed) - _SHOWN} more</div>" if len(failed) > _SHOWN else ""
            head = "<tr><th>job</th><th>code</th><th>what it said</th></tr>"
            parts.append(f"<table>{head}{''.join(rows)}</table>{more}")
        return "".join(parts)

    def __repr__(self) -> str:
        return f"<Bakapara: {len(self)} engines, {self.progress()}>"

    def _hosts_of(self, targets: Union[None, int, str, Sequence[int]]) -> Optional[List[str]]:
        if targets is None or targets == "all":
            return None
        if isinstance(targets, str):
            raise TypeError("targets are numbers of engines, or 'all'")
        numbers = [targets] if isinstance(targets, int) else list(targets)
        hosts = self.hosts
        unknown = [number for number in numbers if number not in hosts]
        if unknown:
            raise IndexError(f"no engine has the number {unknown[0]}")
        return sorted({hosts[number] for number in numbers})


def _say(text: str) -> None:
    """Prints a line on standard error, if that has a reader."""
    try:
        print(text, file=sys.stderr)
    except (OSError, ValueError):
        pass


def _placed(job: Job, hosts: Optional[List[str]]) -> Job:
    """The job with these hosts, unless it names its own."""
    return job if hosts is None else {"host": hosts, **job}


#: The stream's error of a job that is skipped because of another.
_COMES_AFTER = re.compile(r"job (\d+)(, which it comes after, .*)", re.DOTALL)
#: A field in a template; ``${1}`` is the shell's.
_FIELD = re.compile(r"(?<!\$)\{(\d*)\}")


def _word(item: Any) -> str:
    """An item as one word for the shell."""
    return shlex.quote(os.fsdecode(item) if isinstance(item, (bytes, os.PathLike)) else str(item))


def _filled(template: str, item: Any) -> str:
    """A command for an item."""
    if not isinstance(item, tuple):
        return (template if "{}" in template else template + " {}").replace("{}", _word(item))
    words = [_word(element) for element in item]
    fields = _FIELD.findall(template)
    if not fields:
        return " ".join([template, *words])
    if "" in fields and (set(fields) != {""} or len(fields) != len(words)):
        raise ValueError(f"{template!r} does not fit {item!r}: write {{0}}, {{1}} and so on, or {{}} once for each element")
    beyond = [field for field in fields if field and int(field) >= len(words)]
    if beyond:
        raise ValueError(f"{template!r} has {{{beyond[0]}}}, and {item!r} has {len(words)} elements, the first of which is {{0}}")
    following = iter(words)
    return _FIELD.sub(lambda field: words[int(field[1])] if field[1] else next(following), template)


def _name(value: Any) -> Optional[str]:
    """A value as an ``id`` or a job's number; ``None`` if it cannot be one."""
    return str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _before(jobs: Sequence[Job]) -> Dict[int, List[int]]:
    """The jobs that each job comes after, by places in the list. The coordinator reports values that are not names."""
    found: Dict[int, List[int]] = {}
    places: Dict[str, List[int]] = {}
    if any("after" in job for job in jobs):
        for index, job in enumerate(jobs):
            name = _name(job.get("id"))
            if name is not None:
                places.setdefault(name, []).append(index)
    for index, job in enumerate(jobs):
        after = job.get("after", ())
        given = [_name(value) for value in (after if isinstance(after, (list, tuple)) else [after])]
        names = [name for name in given if name is not None]
        if "after" not in job or len(names) < len(given):
            continue
        found[index] = []
        for name in names:
            # As everywhere, an `id` goes before a number.
            place = places.get(name, [])
            if not place and re.fullmatch("[0-9]+", name) and 1 <= int(name) <= len(jobs):
                place = [int(name) - 1]
            if not place and "result" in job:
                # Its predecessor has run before, and is not to run again.
                continue
            if len(place) != 1:
                why = f"several jobs of this list have the id {name!r}" if place else f"there is no job {name!r} in this list"
                raise ValueError(f"job {index + 1}: key 'after': {why}")
            found[index] += place
    return found


def _in_order(count: int, before: Mapping[int, Sequence[int]]) -> Tuple[Sequence[int], Sequence[int]]:
    """The places of jobs in an order that puts each after its predecessors, and the position of each place in that order."""
    if all(i < index for index, others in before.items() for i in others):
        return range(count), range(count)
    waits = {index: set(others) for index, others in before.items()}
    followers: Dict[int, Set[int]] = {}
    for index, others in waits.items():
        for i in others:
            followers.setdefault(i, set()).add(index)
    # Kahn's algorithm (CACM 1962); of the jobs that may come next, the first of the list.
    free = [index for index in range(count) if not waits.get(index)]
    sequence: List[int] = []
    while free:
        index = heapq.heappop(free)
        sequence.append(index)
        for follower in followers.get(index, ()):
            waits[follower].discard(index)
            if not waits[follower]:
                heapq.heappush(free, follower)
    if len(sequence) < count:
        circle = sorted(set(range(count)) - set(sequence))[:_SHOWN]
        raise ValueError(f"key 'after': jobs come after themselves, in a circle among {', '.join(str(i + 1) for i in circle)}")
    when = [0] * count
    for turn, index in enumerate(sequence):
        when[index] = turn
    return sequence, when


def _succeeded(job: Mapping[str, Any]) -> bool:
    result = job.get("result", {})
    return bool(result.get("status") == "ok" and result.get("code") == 0)


def _described(job: Mapping[str, Any]) -> Tuple[Any, Any, str]:
    result = job["result"]
    said = result.get("error") or result.get("stderr_tail") or ""
    return job.get("cmd", job.get("argv")), result.get("code"), said[-500:]


def _display(bakapara: Bakapara, fo: TextIO) -> Tuple[Callable[[], None], Callable[[], None]]:
    """Two functions: one shows the progress, the other ends the display."""
    handle = _notebook(bakapara) if fo is sys.stdout else None
    if handle is not None:
        return (lambda: handle.update(bakapara)), (lambda: None)

    def show() -> None:
        fo.write(f"\r{bakapara.progress()}")
        fo.flush()

    def end() -> None:
        fo.write("\n")
        if bakapara._is_done():
            after = datetime.timedelta(seconds=bakapara._ended - bakapara._began)
            fo.write(f"{len(bakapara._jobs)} tasks completed in {after}\n")
        fo.flush()

    return show, end


def _notebook(bakapara: Bakapara) -> Any:
    """An output area of the notebook, if this is one."""
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    display: Callable[..., Any] = sys.modules["IPython"].display.display
    return display(bakapara, display_id=True)
