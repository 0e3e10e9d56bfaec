"""The class."""

from __future__ import annotations

import asyncio
import collections
import datetime
import html
import os
import shlex
import signal as signals
import sys
import threading
import time
from typing import Any, AsyncIterator, Callable, Deque, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, TextIO, Tuple, Union

from ._process import BakaparaError, NoEngines, Process, lines

#: A job: ``cmd`` or ``argv``, what else the coordinator knows of jobs (``coordinator help run``), and anything of your own.
Job = Dict[str, Any]

#: Jobs that are written together.
_LINES = 1000
#: Failing jobs that a notebook shows.
_SHOWN = 10


class Bakapara:
    """A cluster that runs lists of shell commands.

    Args:
        profile: Name of a profile (``~/.config/mezcal/profiles/NAME.toml``); none: jobs run on this machine.
        slots: Jobs at a time on this machine (default: its CPUs).
        cd: Directory of jobs that name none (default: the present one).
        env: Environment variables for all jobs.
        compat: Results exactly as the old module wrote them: twelve keys, times without a zone.
        timeout: Seconds to wait for a first engine.

    Raises:
        NoEngines: Nobody is there to run anything.
        BakaparaError: The coordinator cannot be reached, or does not want us.

    What runs ends with this process, however that ends; :func:`bakapara.submit` is for jobs that shall go on.
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
        #: Which of them have ended, by their place in the list.
        self.finished: set[int] = set()
        self._changed = threading.Condition()
        self._engines = 0
        self._ever_ran = False
        self._given = 0
        # The jobs of the last run as they were given: the caller's list may change.
        self._jobs: List[Job] = []
        self._order: List[int] = []
        self._unwritten: Deque[Tuple[int, Dict[str, Any]]] = collections.deque()
        self._began = self._ended = time.monotonic()
        self._hosts: Optional[List[Dict[str, Any]]] = None
        self._cancelled: Optional[Dict[str, int]] = None
        self._refused: Optional[str] = None
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
        if compat:
            arguments += ["--compat", "bakapara"]
        self._process = Process(arguments, self._hear, self._end)
        try:
            if not self._wait_for(lambda: self._engines > 0, timeout):
                raise NoEngines(f"no engine within {timeout:g} s")
        except BaseException:
            self._process.kill()
            raise

    # What the coordinator says, on a thread of its own.

    def _hear(self, said: Dict[str, Any]) -> None:
        event = said.get("event")
        if event in ("notice", "refused", "lost", "connected"):
            _say(f"bakapara: {said.get('text', event)}")
        with self._changed:
            if event is None:
                index = said["job"] - 1 - (self._given - len(self._jobs))
                self._unwritten.append((index, said["result"]))
                self._order.append(index)
                self._ended = time.monotonic()
            elif event == "fleet":
                self._engines = said["engines"]
            elif event == "hosts":
                self._hosts = said["hosts"]
            elif event == "cancelled":
                self._cancelled = {key: said[key] for key in ("jobs", "killed", "survivors", "unreachable")}
            elif event == "refused":
                self._refused = said["text"]
            self._notify()

    def _end(self) -> None:
        with self._changed:
            self._over = True
            self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        for wake in self._wakers:
            wake()

    # Waiting.

    def _wait_for(self, condition: Callable[[], bool], timeout: Optional[float]) -> bool:
        """Whether it has come true, within so many seconds (none or less than 0: however long it takes)."""
        deadline = None if timeout is None or timeout < 0 else time.monotonic() + timeout
        with self._changed:
            while not condition():
                if self._over:
                    raise self._process.error()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                # Without an end a wait would not be interrupted by Ctrl-C on all systems.
                self._changed.wait(1.0 if left is None else min(left, 1.0))
            return True

    def _is_done(self) -> bool:
        return len(self._order) == len(self._jobs)

    def _write_results(self) -> None:
        """Puts what has come into the caller's jobs: only ever while the caller is here."""
        while self._unwritten:
            index, result = self._unwritten.popleft()
            self._jobs[index]["result"] = result
            self.finished.add(index)

    # The old module's.

    def run(self, jobs: List[Job], targets: Union[None, int, str, Sequence[int]] = None) -> bool:
        """Starts jobs. Their results are written into them when they have ended, as ``job['result']``.

        Args:
            jobs: A list of dictionaries.
            targets: Numbers of engines on whose hosts they shall run (:attr:`hosts`); none, or ``'all'``: any.

        Returns:
            False if jobs of an earlier run have not ended; nothing is started then.

        Raises:
            TypeError: A job is no dictionary, or has something in it that JSON has not.
            ValueError: A job has a key ``control`` and no command: to the coordinator it would be no job.
            BakaparaError: The coordinator has ended.
        """
        if not self._is_done():
            return False
        for job in jobs:
            if not isinstance(job, Mapping):
                raise TypeError(f"a job is a dictionary, not {type(job).__name__}")
            if "control" in job and "cmd" not in job and "argv" not in job:
                raise ValueError(f"a job needs `cmd` or `argv`: {job!r}")
        hosts = self._hosts_of(targets)
        # Before anything is started: what cannot be said raises here.
        written = [lines(_placed(job, hosts) for job in jobs[start : start + _LINES]) for start in range(0, len(jobs), _LINES)]
        self._write_results()
        with self._changed:
            self.jobs, self._jobs, self.finished, self._order = jobs, list(jobs), set(), []
            self._given += len(jobs)
            self._ever_ran = True
            self._began = self._ended = time.monotonic()
        try:
            for data in written:
                self._process.send(data)
        except BaseException:
            # Only a part of them is there: nobody could wait for the rest.
            self._process.kill()
            raise
        return True

    def wait(self, timeout: Optional[float] = 1e-3) -> None:
        """Writes the results that have come, after so many seconds or when all have come (less than 0: whenever that is)."""
        self.join(timeout)

    def status(self, interval: float = 1.0, timeout: Optional[float] = -1, fo: Optional[TextIO] = None) -> None:
        """Shows how far it is until all jobs have ended. Ctrl-C, or a notebook's Interrupt, ends the display and not the jobs."""
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
            ValueError: Not all of them have ended.
        """
        if not self.ready():
            raise ValueError("not all jobs have ended")
        return all(_succeeded(job) for job in self._jobs)

    def abort(self, **_: Any) -> None:
        """Kills what runs, and lets nothing more of the run start."""
        self.cancel()

    def interrupt(self) -> None:
        """The same with INT, which KILL follows after two seconds."""
        self.cancel(signal="INT")

    def shutdown(self, **_: Any) -> Optional[bool]:
        """Cancels what has not ended, and leaves. Returns False if nothing has ever been run."""
        if self._process.is_running:
            try:
                if not self._is_done():
                    self.cancel()
                self.join()
                self._process.send(lines([{"control": "close"}]))
                self._process.end()
            except BakaparaError:
                # It has ended by itself.
                pass
        return None if self._ever_ran else False

    def __len__(self) -> int:
        """How many engines there are now."""
        return self._engines

    def __bool__(self) -> bool:
        return True

    @property
    def hosts(self) -> Dict[int, str]:
        """The host of each engine, by the engine's number."""
        with self._asking:
            self._hosts = None
            self._ask({"control": "hosts"}, lambda: self._hosts is not None)
            found: List[Dict[str, Any]] = self._hosts or []
        return {host["first_engine"] + slot: host["name"] for host in found for slot in range(host["slots"])}

    def _ask(self, line: Dict[str, Any], answered: Callable[[], bool]) -> None:
        """Waits for the answer to a request. One is made at a time."""
        self._refused = None
        self._process.send(lines([line]))
        self._wait_for(lambda: answered() or self._refused is not None, None)
        if not answered():
            raise BakaparaError(str(self._refused))

    # What is new.

    def join(self, timeout: Optional[float] = None) -> bool:
        """Waits until all jobs have ended, or for so many seconds. Writes the results that have come. True if that was all."""
        try:
            return self._wait_for(self._is_done, timeout)
        finally:
            self._write_results()

    def cancel(
        self, jobs: Union[None, Job, Iterable[Job]] = None, *, grace: float = 2.0, signal: Union[None, int, str] = None
    ) -> Dict[str, int]:
        """Kills jobs of the run (default: all that have not ended), and waits for what has come of it.

        Args:
            jobs: One or several of the dictionaries that were given to :meth:`run`.
            grace: Seconds between the signal and KILL.
            signal: The signal (default: TERM), by name or number, which all processes of a job get.

        Returns:
            How many ``jobs`` had not ended, and how many processes were ``killed`` and are ``survivors``; and jobs that are
            ``unreachable``.

        Raises:
            BakaparaError: The coordinator refuses that, or has ended.
        """
        if jobs is None:
            indices: Iterable[int] = set(range(len(self._jobs))) - set(self._order)
        else:
            places = {id(job): index for index, job in enumerate(self._jobs)}
            wanted = [jobs] if isinstance(jobs, Mapping) else list(jobs)
            indices = [places[id(job)] for job in wanted if id(job) in places]
        first = self._given - len(self._jobs) + 1
        line: Dict[str, Any] = {"control": "cancel", "jobs": [first + index for index in sorted(indices)], "grace": f"{grace:.6f}s"}
        if signal is not None:
            line["signal"] = signals.Signals(signal).name if isinstance(signal, int) else signal
        with self._asking:
            self._cancelled = None
            self._ask(line, lambda: self._cancelled is not None)
            return self._cancelled or {}

    def map(self, template: str, items: Iterable[Any], **keys: Any) -> List[Job]:
        """Runs a command for each item, and gives back the jobs when they have ended.

        ``{}`` in the template stands for the item, quoted for the shell; without one, the item comes last. Further arguments are
        keys of every job.

        Raises:
            BakaparaError: Jobs of an earlier run have not ended.
        """
        template = template if "{}" in template else template + " {}"
        jobs = [dict(keys, cmd=template.replace("{}", shlex.quote(os.fspath(i) if isinstance(i, os.PathLike) else str(i)))) for i in items]
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
        """The same, without holding up the event loop."""
        loop, came = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(came.set)
            except RuntimeError:
                # The loop has been closed.
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

        Raises:
            ImportError: There is no pandas.
        """
        import pandas  # type: ignore[import-untyped,unused-ignore]

        self.join(0)
        rows = [{**{k: v for k, v in job.items() if k != "result"}, **job.get("result", {})} for job in self._jobs]
        return pandas.DataFrame(rows)

    def progress(self) -> str:
        """How far it is, in words."""
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
    """A line on standard error, if anybody reads that."""
    try:
        print(text, file=sys.stderr)
    except (OSError, ValueError):
        pass


def _placed(job: Job, hosts: Optional[List[str]]) -> Job:
    """A job that names no hosts, on these."""
    return job if hosts is None else {"host": hosts, **job}


def _succeeded(job: Mapping[str, Any]) -> bool:
    result = job.get("result", {})
    return bool(result.get("status") == "ok" and result.get("code") == 0)


def _described(job: Mapping[str, Any]) -> Tuple[Any, Any, str]:
    result = job["result"]
    said = result.get("error") or result.get("stderr_tail") or ""
    return job.get("cmd", job.get("argv")), result.get("code"), said[-500:]


def _display(bakapara: Bakapara, fo: TextIO) -> Tuple[Callable[[], None], Callable[[], None]]:
    """What shows the progress, and what ends the display."""
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
    """A place in the page of a notebook, if this is one."""
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    display: Callable[..., Any] = sys.modules["IPython"].display.display
    return display(bakapara, display_id=True)
