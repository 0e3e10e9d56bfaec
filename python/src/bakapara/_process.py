"""The coordinator as a child process that speaks JSON Lines both ways (``coordinator run --stream``)."""

from __future__ import annotations

import collections
import json
import os
import queue
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any, Callable, Deque, Dict, Iterable, List, Mapping, Optional

#: Lines of standard error that are kept for exceptions.
_TAIL = 20
#: Groups of lines that may wait to be written; a caller with more has to wait.
_DEPTH = 8


def lines(objects: Iterable[Mapping[str, Any]]) -> bytes:
    """These objects as JSON Lines; jobs without their result.

    Raises:
        TypeError: There is something in one that JSON has not.
    """
    given = ({key: value for key, value in line.items() if key != "result"} for line in objects)
    return b"".join(json.dumps(line).encode() + b"\n" for line in given)


class BakaparaError(RuntimeError):
    """The coordinator could not do what it was asked for; the message is its own."""


class NoEngines(BakaparaError):
    """There is no engine to run jobs."""


def program() -> str:
    """Path of the program: ``MEZCAL_COORDINATOR``, or ``mezcal`` in this package or on ``PATH``, or ``coordinator`` there: a link to it, or
    a file of its own before version 0.2.

    Raises:
        BakaparaError: There is none.
    """
    named = os.environ.get("MEZCAL_COORDINATOR")
    if named:
        return named
    bundled = Path(__file__).with_name("bin") / "mezcal"
    if bundled.exists():
        return str(bundled)
    found = shutil.which("mezcal") or shutil.which("coordinator")
    if found is None:
        raise BakaparaError(
            "no program `mezcal` on PATH: install Mezcal, or set MEZCAL_COORDINATOR to where the program is"
        )
    return found


class Process:
    """A running ``coordinator run --stream``: a thread passes its messages to ``heard``."""

    def __init__(self, arguments: List[str], heard: Callable[[Dict[str, Any]], None], ended: Callable[[], None]) -> None:
        self._heard, self._ended = heard, ended
        self._errors: Deque[str] = collections.deque(maxlen=_TAIL)
        self._is_closed = False
        command = [program(), "run", "--stream", "--attended", "--quiet", *arguments, "-"]
        try:
            # A session of its own: Ctrl-C, and a notebook's Interrupt, are for Python alone.
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as e:
            raise BakaparaError(f"cannot start {command[0]}: {e}") from e
        self._lines: "queue.Queue[Optional[bytes]]" = queue.Queue(_DEPTH)
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._read, self._read_errors, self._write)]
        for thread in self._threads:
            thread.start()

    def send(self, data: bytes) -> None:
        """Queues these lines for writing. Waits while the queue is full.

        Raises:
            BakaparaError: It has ended.
        """
        while True:
            if self._child.poll() is not None:
                raise self.error()
            try:
                return self._lines.put(data, timeout=0.5)
            except queue.Full:
                pass

    def end(self, timeout: Optional[float] = None) -> int:
        """Waits until it has ended, and returns its exit status (``coordinator help run``)."""
        status = self._child.wait(timeout)
        self._is_closed = True
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            pass
        for thread in self._threads[:2]:
            thread.join()
        return status

    def kill(self) -> None:
        """Leaves at once: the coordinator notices that its client is gone, and cancels the running jobs."""
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            self._child.terminate()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._child.poll() is None

    def error(self) -> BakaparaError:
        """Why it has ended."""
        if self._is_closed:
            return BakaparaError("it has been shut down, and runs nothing more: make a new Bakapara")
        self._threads[1].join(1)
        text = "\n".join(self._errors) or f"it ended with status {self._child.returncode}"
        return BakaparaError(text[len("coordinator: ") :] if text.startswith("coordinator: ") else text)

    def _read(self) -> None:
        assert self._child.stdout is not None
        try:
            with self._child.stdout as lines:
                for line in lines:
                    self._heard(json.loads(line))
        finally:
            # Also after an error: a waiting caller has to learn that no more messages come.
            self._child.wait()
            self._ended()

    def _read_errors(self) -> None:
        assert self._child.stderr is not None
        with self._child.stderr as lines:
            for line in lines:
                self._errors.append(line.decode(errors="replace").rstrip("\n"))

    def _write(self) -> None:
        assert self._child.stdin is not None
        try:
            with self._child.stdin as stdin:
                for data in iter(self._lines.get, None):
                    stdin.write(data)
                    stdin.flush()
        except OSError:
            # The child has ended; its reader notices that.
            pass
