#!/usr/bin/env python3
"""Mezcal beside its peers on this machine: one command, one report.

    cargo build --release --workspace --bins --examples
    python3 tests/bench/compare.py [--rounds 7] [--jobs 1500] [--peers PYTHON] [--report BENCHMARKS.md]

Contenders take turns within each round, so that what the machine does beside it meets all of them. Reported are medians, and the ratios
to the bare spawn loop of the same round with their range. A peer that is not installed is skipped by name. PYTHON is an interpreter that has
hyperqueue and ipyparallel (default: this one).
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RELEASE = ROOT / "target/release"
BASH = ["bash", "-o", "pipefail", "-c"]
#: Seconds over which idle processes are watched.
IDLE = 20
#: The programs beside our own that are run.
EXAMPLES = ("spawn_loop", "million", "durable", "cancel_latency", "article")
#: Lengths of jobs in seconds, and how many there are for each of 48 slots.
LENGTHS = ((1.0, 4), (0.1, 10), (0.01, 20), (0.001, 50))


def timed(command, **kwargs):
    """Wall seconds of a command that has to succeed."""
    begin = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **kwargs)
    return time.monotonic() - begin


class Contender:
    """Runs a command so many times, so many at a time."""

    name = ""
    #: Seconds per job are so much higher than the bare loop's that fewer jobs are enough.
    share = 1.0

    def __init__(self, directory):
        self.directory = directory

    def version(self):
        """What it is; none: it is not installed."""
        raise NotImplementedError

    def run(self, count, slots, argv):
        """Wall seconds."""
        raise NotImplementedError

    def end(self):
        """Whatever has been started for it."""

    def job_file(self, count, argv):
        path = Path(self.directory, f"jobs.{count}.{abs(hash(tuple(argv)))}")
        if not path.exists():
            job = {"cmd": argv[-1]} if argv[: len(BASH)] == BASH else {"argv": argv}
            path.write_text((json.dumps(job) + "\n") * count)
        return str(path)


class Bare(Contender):
    name = "bare spawn loop"

    def version(self):
        return "tests/examples/spawn_loop.rs (posix_spawn)"

    def run(self, count, slots, argv):
        out = subprocess.run([RELEASE / "examples/spawn_loop", str(count), str(slots), *argv], check=True, capture_output=True, text=True)
        return float(out.stdout)


class Xargs(Contender):
    name = "xargs"

    def version(self):
        return shutil.which("xargs") and first_line(["xargs", "--version"])

    def run(self, count, slots, argv):
        return timed(["xargs", "-P", str(slots), "-I{}", *argv], input=b"x\n" * count)


class Embedded(Contender):
    name = "Mezcal, embedded"

    def version(self):
        return first_line([RELEASE / "coordinator", "--version"])

    def run(self, count, slots, argv):
        return timed([RELEASE / "coordinator", "run", "--local", "-j", str(slots), "-q", self.job_file(count, argv)])


class Service(Contender):
    """A coordinator with its store and an agent, over QUIC on loopback."""

    name = "Mezcal, service over QUIC"
    cluster = None
    #: Before the commands of the coordinator and its clients, and of the agent.
    hosts = ([], [])

    def version(self):
        return first_line([RELEASE / "agent", "--version"])

    def run(self, count, slots, argv):
        if self.cluster is None or self.cluster[0] != slots:
            self.end()
            self.start(slots)
        return timed([*self.hosts[0], RELEASE / "coordinator", "run", "-p", "bench", "-q", self.job_file(count, argv)], env=self.env)

    def address(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            return f"127.0.0.1:{free.getsockname()[1]}"

    def start(self, slots):
        self.here, address = Path(tempfile.mkdtemp(dir=self.directory)), self.address()
        here = self.here
        certs = lambda *words: timed([RELEASE / "certs", *words], cwd=here)  # noqa: E731
        certs("init", "pki", "--cluster", "bench")
        certs("issue", "coordinator", "--dir", "pki")
        certs("issue", "agent", "bench01", "--dir", "pki")
        certs("issue", "user", "bench", "--dir", "pki")
        profiles = here / "config/mezcal/profiles"
        profiles.mkdir(parents=True)
        (profiles / "bench.toml").write_text(f'coordinator = "{address}"\nidentity = "{here}/pki/users/bench"\n')
        (here / "serve.toml").write_text(f'listen = "{address}"\nidentity = "{here}/pki/coordinator"\nstate = "{here}/state"\n')
        (here / "agent.toml").write_text(
            f'coordinator = "{address}"\nidentity = "{here}/pki/agents/bench01"\nslots = {slots}\nruntime = "{here}/run"\nallow_root_jobs = true\n'
        )
        self.env = dict(os.environ, XDG_CONFIG_HOME=str(here / "config"))
        log = open(here / "log", "w")
        commands = (["coordinator", "serve", "--config", "serve.toml"], ["agent", "run", "--config", "agent.toml"])
        processes = [
            subprocess.Popen([*host, RELEASE / name, *words], cwd=here, stdin=subprocess.DEVNULL, stderr=log)
            for host, (name, *words) in zip(self.hosts, commands)
        ]
        self.cluster = (slots, processes)
        self.run(1, slots, [*BASH, "true"])

    def end(self):
        if self.cluster:
            for process in reversed(self.cluster[1]):
                process.send_signal(signal.SIGTERM)
                process.wait()
            self.cluster = None


class Namespaces(Service):
    """The same with the agent in a network namespace of its own."""

    name = "Mezcal, between namespaces"

    def __init__(self, directory):
        super().__init__(directory)
        self.made = [f"mzb{os.getpid()}{side}" for side in "ab"]
        self.hosts = tuple(["ip", "netns", "exec", name] for name in self.made)

    def version(self):
        return super().version() if os.geteuid() == 0 and shutil.which("ip") else None

    def address(self):
        return "10.78.0.1:7433"

    def start(self, slots):
        ip = lambda *words: subprocess.run(["ip", *words], check=True)  # noqa: E731
        for name in self.made:
            ip("netns", "add", name)
        ip("link", "add", self.made[0], "netns", self.made[0], "type", "veth", "peer", "name", self.made[1], "netns", self.made[1])
        for host, name in enumerate(self.made, start=1):
            ip("-n", name, "address", "add", f"10.78.0.{host}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        super().start(slots)

    def end(self):
        super().end()
        for name in self.made:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


class Parallel(Contender):
    name, share = "GNU Parallel", 0.4

    def version(self):
        return shutil.which("parallel") and first_line(["parallel", "--version"])

    def run(self, count, slots, argv):
        command = argv[-1] if argv[: len(BASH)] == BASH else " ".join(argv)
        env = dict(os.environ, SHELL="/bin/bash")
        return timed(["parallel", "--will-cite", "-j", str(slots), "-n0", command], input=b"x\n" * count, env=env)


class Peer(Contender):
    """Of Python's: a script in an interpreter that has it, which prints the seconds."""

    module, script = "", ""

    def __init__(self, directory, python):
        super().__init__(directory)
        self.python = python

    def version(self):
        code = f"import importlib.metadata as m; print('{self.module}', m.version('{self.module}'))"
        done = subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=False)
        return done.stdout.strip() or None

    def run(self, count, slots, argv):
        command = [self.python, "-c", self.script, str(count), str(slots), *argv]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.directory, check=True)
        return float(done.stdout.split()[-1])


class HyperQueue(Peer):
    name, module, share = "HyperQueue", "hyperqueue", 0.7
    script = """
import sys, time
from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig
count, slots, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
with LocalCluster() as cluster:
    cluster.start_worker(WorkerConfig(cores=slots))
    client = cluster.client()
    job = Job()
    for _ in range(count):
        job.program(argv, stdout=None, stderr=None)
    begin = time.monotonic()
    client.wait_for_jobs([client.submit(job)])
    print(time.monotonic() - begin)
"""


class IPyParallel(Peer):
    name, module, share = "ipyparallel", "ipyparallel", 0.15
    script = """
import sys, time, subprocess
import ipyparallel
count, slots, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
def runjob(argv):
    import subprocess
    return subprocess.call(argv)
with ipyparallel.Cluster(n=slots, log_level=40) as rc:
    rc.wait_for_engines(slots, timeout=120)
    view = rc.load_balanced_view()
    begin = time.monotonic()
    view.map_async(runjob, [argv] * count).get()
    print(time.monotonic() - begin)
"""


def first_line(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).splitlines()[0]


def measure(contenders, rounds, count, slots, argv, only=None):
    """Seconds per job of each, round by round; of some only, which run all of the jobs and no share of them."""
    times = {c.name: [] for c in contenders if only is None or c.name in only}
    for number in range(rounds):
        for contender in contenders:
            if contender.name in times:
                jobs = count if only else max(50, int(count * contender.share))
                times[contender.name].append(contender.run(jobs, slots, argv) / jobs)
        print(f"  {slots} slots, round {number + 1} of {rounds}", file=sys.stderr)
    return times


def table(times, references, unit, scale):
    """Rows: name, median, its ratio to each reference with the range."""
    rows = [f"| | {unit} | " + " | ".join(f"ratio to {reference} (range)" for reference in references) + " |"]
    rows.append("|---|---|" + "---|" * len(references))
    for name, values in times.items():
        cells = [name, f"{statistics.median(values) * scale:.3f}"]
        for reference in references:
            ratios = [value / base for value, base in zip(values, times[reference])]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def plot(path, title, times, reference):
    """Horizontal bars of the median ratios."""
    ratios = {name: statistics.median(v / b for v, b in zip(values, times[reference])) for name, values in times.items()}
    height, longest = 26, max(ratios.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height * (len(ratios) + 1) + 10}" font-family="sans-serif" font-size="13">',
        "<style>text{fill:#222}@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>",
        f'<text x="4" y="18" font-weight="bold">{title}</text>',
    ]
    for row, (name, ratio) in enumerate(ratios.items(), start=1):
        y, width = row * height + 4, 360 * ratio / longest
        colour = "#2a7f62" if name.startswith("Mezcal") else "#8a8a8a"
        parts.append(f'<text x="4" y="{y + 15}">{name}</text>')
        parts.append(f'<rect x="220" y="{y}" width="{width:.1f}" height="{height - 6}" fill="{colour}"/>')
        parts.append(f'<text x="{226 + width:.1f}" y="{y + 15}">{ratio:.2f}</text>')
    path.write_text("\n".join(parts) + "\n</svg>\n")


def first_result(contenders, rounds):
    """Milliseconds of a cold start with one trivial job."""
    times = {}
    for _ in range(rounds):
        for contender in contenders:
            if contender.name in ("xargs", "GNU Parallel", "Mezcal, embedded"):
                times.setdefault(contender.name, []).append(contender.run(1, 1, [*BASH, "true"]))
    return times


def cpu_times(root, directory):
    """Seconds of CPU so far (schedstat), by kind of process: of these, of those that name the directory, and of all that they have started."""
    root, parents, kinds = set(root), {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                words = (entry / "cmdline").read_text().split("\0")
                nanoseconds = sum(int(task.read_text().split()[0]) for task in entry.glob("task/*/schedstat"))
            except OSError:
                continue
            kind = words[0].split()[0].rsplit("/", 1)[-1] if words[0] else "?"
            kinds[int(entry.name)] = (kind, nanoseconds)
            if any(str(directory) in word for word in words):
                root.add(int(entry.name))
    times = {}
    for pid, (kind, nanoseconds) in kinds.items():
        ancestor = pid
        while ancestor not in root and ancestor in parents:
            ancestor = parents[ancestor]
        if ancestor in root and pid != os.getpid():
            times[kind] = times.get(kind, 0) + nanoseconds / 1e9
    return times


def resident(pid):
    """MiB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def spent(service, work):
    """Seconds of CPU that each of our kinds of processes takes during `work`."""
    pids = [process.pid for process in service.cluster[1]]
    before = cpu_times(pids, service.here)
    work()
    after = cpu_times(pids, service.here)
    ours = [kind for kind in sorted(after) if kind in ("coordinator", "agent") or kind.startswith("mezcal-")]
    return {kind: after[kind] - before.get(kind, 0) for kind in ours}


def process_costs(service, count):
    """What each of our processes costs, at work and idle."""
    argv = [*BASH, "true"]
    service.run(50, 4, argv)
    pids = [process.pid for process in service.cluster[1]]
    busy = spent(service, lambda: service.run(count, 4, argv))
    rows = ["| | CPU s per 10,000 jobs |", "|---|---|"]
    rows += [f"| {kind} | {seconds * 10_000 / count:.2f} |" for kind, seconds in busy.items()]
    rest = spent(service, lambda: time.sleep(IDLE))
    idle = [f"{kind} {seconds / IDLE:.3%} of a core" for kind, seconds in rest.items()]
    idle.append(f"resident: coordinator {resident(pids[0]):.1f} MiB, agent {resident(pids[1]):.1f} MiB")
    return ["\n".join(rows), f"Idle, with 4 engines, over {IDLE} s: " + ", ".join(idle) + "."]


def example(name, *words):
    """What one of the example programs prints."""
    done = subprocess.run([RELEASE / "examples" / name, *words], capture_output=True, text=True, check=False)
    failed = f"{name} failed: {done.stderr.strip()[-500:]}" if done.returncode else ""
    return (done.stdout + failed).rstrip()


SCALE = (
    "10^3 to 10^6 jobs through parser, scheduler, codec and QUIC to engines that answer at once, without a store, and results "
    "written (`million`). Its rate includes the start of the coordinator."
)


def machine():
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} × {cpu}, Linux {platform.release()}, {first_line(['bash', '--version'])}"


def positive(text):
    """A number of rounds or jobs."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=positive, default=7)
    options.add_argument("--jobs", type=positive, default=1500)
    options.add_argument("--peers", default=sys.executable, metavar="PYTHON")
    options.add_argument("--report", type=Path, default=ROOT / "BENCHMARKS.md")
    given = options.parse_args()
    if not shutil.which(given.peers):
        options.error(f"--peers {given.peers}: there is no such interpreter")
    wanted = ("coordinator", "agent", "certs", *(f"examples/{name}" for name in EXAMPLES))
    missing = [name for name in wanted if not (RELEASE / name).exists()]
    if missing:
        options.error(f"not there below {RELEASE}: {', '.join(missing)}; cargo build --release --workspace --bins --examples")
    plots = given.report.parent / "docs/benchmarks"
    plots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        every = [kind(directory) for kind in (Bare, Xargs, Embedded, Service, Namespaces, Parallel)]
        every += [kind(directory, given.peers) for kind in (HyperQueue, IPyParallel)]
        versions = {contender.name: contender.version() for contender in every}
        for name, version in versions.items():
            if not version:
                print(f"SKIPPED {name}: it is not installed", file=sys.stderr)
        contenders = [contender for contender in every if versions[contender.name]]
        parts = [
            "# Beside its peers",
            f"Written by `python3 tests/bench/compare.py` on {datetime.date.today()}: {machine()}. Contenders take turns within each of {given.rounds} rounds; "
            "medians, and ratios within a round with their range. Times are those of the whole command, its start included, but for HyperQueue and "
            "ipyparallel, whose cluster runs already and where only the jobs are timed; so does Mezcal's service, and its client is started.",
            "\n".join(f"- {name}: {version or 'not installed, skipped'}" for name, version in versions.items()),
        ]
        try:
            for slots in (1, 4, 16):
                times = measure(contenders, given.rounds, given.jobs, slots, [*BASH, "true"])
                parts += [f"## `bash -o pipefail -c true`, {slots} at a time", table(times, [Bare.name], "ms per job", 1000)]
                if slots == 4:
                    title = "Cost of a trivial job, 4 at a time, against a bare spawn loop"
                    plot(plots / "per-job.svg", title, times, Bare.name)
                    parts.append("![cost per job](docs/benchmarks/per-job.svg)")
            times = measure(contenders, given.rounds, given.jobs, 4, ["/bin/true"])
            parts += ["## `true` without a shell, 4 at a time", table(times, [Bare.name], "ms per job", 1000)]
            for seconds, waves in LENGTHS:
                count = 48 * waves
                times = measure(contenders, given.rounds, count, 48, ["sleep", str(seconds)], only={
                    "bare spawn loop", "xargs", "Mezcal, embedded", "Mezcal, service over QUIC", "Mezcal, between namespaces", "GNU Parallel", "HyperQueue"})
                ideal = {"ideal": [seconds / 48] * len(next(iter(times.values()))), **times}
                parts += [
                    f"## {count} × `sleep {seconds}` on 48 slots: makespan against the ideal of {seconds * waves:g} s",
                    table(ideal, ["ideal", Bare.name], "s", count),
                ]
                if seconds == 0.1:
                    plot(plots / "makespan.svg", "Makespan of 480 jobs of 100 ms on 48 slots, against the ideal", ideal, "ideal")
                    parts.append("![makespan](docs/benchmarks/makespan.svg)")
            times = first_result(contenders, max(given.rounds, 7))
            rows = [f"| {name} | {statistics.median(v) * 1000:.1f} ({min(v) * 1000:.1f} to {max(v) * 1000:.1f}) |" for name, v in times.items()]
            parts += ["## One trivial job, cold, to the end of the command", "\n".join(["| | ms (range) |", "|---|---|", *rows])]
            service = next(contender for contender in contenders if isinstance(contender, Service))
            parts += ["## What each process of a service costs", *process_costs(service, given.jobs)]
            service.end()
            parts += ["## Control plane alone", SCALE]
            parts += ["```\n" + "\n".join(example("million", str(10**power)) for power in range(3, 7)) + "\n```"]
            parts += ["A service with its store and 1,000 agents (`durable`):", "```\n" + example("durable") + "\n```"]
            parts += ["## Cancel, and what is left (`cancel_latency`); 12 hosts and the article's run with `sleep 1` (`article`)"]
            parts += ["```\n" + example("cancel_latency") + "\n" + example("article", "1") + "\n```"]
        finally:
            for contender in contenders:
                contender.end()
            # What has been measured is kept, whatever happens after it.
            given.report.write_text("\n\n".join(parts) + "\n")
    print(given.report.read_text())


if __name__ == "__main__":
    main()
