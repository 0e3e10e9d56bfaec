"""The overhead of the class over the command: the same jobs through ``Bakapara.run`` and through ``coordinator run``, in turn.

    python3 benchmarks/overhead.py [JOBS] [ROUNDS]

Prints the wall time of each, the median of the ratios with their range, and the largest resident set of the class's coordinator.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from bakapara import Bakapara, program  # noqa: E402


def command(path):
    begin = time.monotonic()
    with open(os.devnull, "w") as nowhere:
        subprocess.run([program(), "run", "--local", "-j", "4", "-q", path], stdout=nowhere, check=True)
    return time.monotonic() - begin


def resident(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


def by_class(jobs):
    begin = time.monotonic()
    with Bakapara(slots=4) as bp:
        bp.run(jobs)
        bp.join()
        assert bp.successful()
        took, peak = time.monotonic() - begin, resident(bp._process._child.pid)
    return took, peak


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    ratios = []
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        for _ in range(count):
            file.write(json.dumps({"cmd": "true"}) + "\n")
        file.flush()
        for _ in range(rounds):
            alone = command(file.name)
            took, peak = by_class([{"cmd": "true"} for _ in range(count)])
            ratios.append(took / alone)
            print(f"{count} jobs: command {alone:.2f} s, class {took:.2f} s, ratio {took / alone:.3f}, coordinator's peak {peak:.1f} MiB", flush=True)
    print(f"ratio: median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
