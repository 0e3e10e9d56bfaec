#!/usr/bin/env bash
# Linux: the peak memory of a child (ru_maxrss of wait4) is at least that of the process that started
# it, also when the child has run nothing but /bin/true.
#
# Most people expect that execve(2) begins with new memory and a new peak, so that "maximum resident
# set size" of a small command is small. Seen: started by a Python process that holds 400 MiB, `true`
# has a peak of over 400 MiB, through subprocess, posix_spawn and fork alike. Once the parent has
# freed its memory, a child of fork and exec is small again, but children of subprocess and
# posix_spawn (which share the parent's memory until they exec) still have the parent's old peak.
# So whatever starts commands and reports their peaks has to stay small itself.
#
# Exits 1 if that changes. Needs python3; leaves nothing behind.
set -euo pipefail
uname -sr
python3 - <<'PYTHON'
import os
import subprocess
import sys

MIB = 400
kept = []


def popen():
    kept.append(subprocess.Popen(["/bin/true"]))
    return kept[-1].pid


def posix_spawn():
    return os.posix_spawn("/bin/true", ["true"], {})


def fork_and_exec():
    pid = os.fork()
    if pid == 0:
        os.execv("/bin/true", ["true"])
    return pid


def peaks():
    """MiB that wait4 says of /bin/true, by the way in which it was started."""
    ways = [popen, posix_spawn, fork_and_exec]
    return {way.__name__: os.wait4(way(), 0)[2].ru_maxrss // 1024 for way in ways}


small = peaks()
ballast = b"x" * (MIB << 20)
large = peaks()
del ballast
freed = peaks()
print("Python", sys.version.split()[0])
for what, said in [("a small parent", small), ("a parent of 400 MiB", large), ("after it freed them", freed)]:
    print(f"{what}:", ", ".join(f"{way} {mib} MiB" for way, mib in said.items()))
as_seen = (
    max(small.values()) < 100
    and min(large.values()) >= MIB
    and min(freed["popen"], freed["posix_spawn"]) >= MIB
    and freed["fork_and_exec"] < 100
)
for child in kept:
    child.returncode = 0
sys.exit(0 if as_seen else 1)
PYTHON
