"""Batches that nobody attends to."""

from __future__ import annotations

import json
import subprocess
from typing import Any, Iterable, List, Mapping, Optional

from ._process import BakaparaError, program


def submit(jobs: Iterable[Mapping[str, Any]], profile: str = "default", name: Optional[str] = None) -> str:
    """Hands jobs over to a running coordinator, which goes on when this process has ended.

    Returns the id of the batch, for ``coordinator attach``, ``wait``, ``results``, ``status`` and ``cancel``.

    Raises:
        BakaparaError: The coordinator does not take them.
    """
    command: List[str] = [program(), "run", "--detach", "-p", profile, "-"]
    if name is not None:
        command += ["--name", name]
    lines = "".join(json.dumps({k: v for k, v in job.items() if k != "result"}) + "\n" for job in jobs)
    done = subprocess.run(command, input=lines.encode(), capture_output=True, check=False, start_new_session=True)
    if done.returncode != 0:
        raise BakaparaError(done.stderr.decode(errors="replace").strip())
    return done.stdout.decode().strip()
