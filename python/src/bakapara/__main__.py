"""``python -m bakapara``: the command of the old module, by a coordinator that behaves like it (``--compat bakapara``)."""

from __future__ import annotations

import argparse
import os
import sys
from typing import List, NoReturn, Optional

from ._process import BakaparaError, program


def main(arguments: Optional[List[str]] = None) -> NoReturn:
    """Becomes the coordinator."""
    parser = argparse.ArgumentParser(prog="bakapara", description="Run a list of shell commands, one JSON object per line.")
    parser.add_argument("-p", "--profile", default="default", help="profile name of the cluster")
    parser.add_argument("-i", "--input", help="job list (default: standard input)")
    parser.add_argument("-o", "--output", help="results (default: standard output)")
    parser.add_argument("-l", "--logging", help="log lines (default: standard error)")
    given = parser.parse_args(arguments)
    try:
        command = [program(), "run", "--compat", "bakapara", "--progress", "log", "-p", given.profile]
    except BakaparaError as e:
        sys.exit(f"bakapara: {e}")
    for flag, value in (("-i", given.input), ("-o", given.output), ("-l", given.logging)):
        if value is not None:
            command += [flag, value]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
