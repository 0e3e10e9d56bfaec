"""Batches that run without a client."""

from __future__ import annotations

import subprocess
from typing import Any, Iterable, List, Mapping, Optional

from ._process import BakaparaError, lines, program


def submit(jobs: Iterable[Mapping[str, Any]], profile: str = "default", name: Optional[str] = None) -> str:
    """Hands jobs over to a running coordinator, which goes on when this process has ended.

    Returns the id of the batch, for ``coordinator attach``, ``wait``, ``results``, ``status`` and ``cancel``.

    Raises:
        BakaparaError: The coordinator does not take them.
    """
    command: List[str] = [program(), "run", "--detach", "-p", profile, "-"]
    if name is not None:
        command += ["--name", name]
    done = subprocess.run(command, input=lines(jobs), capture_output=True, check=False, start_new_session=True)
    if done.returncode != 0:
        raise BakaparaError(done.stderr.decode(errors="replace").strip())
    return done.stdout.decode().strip()
