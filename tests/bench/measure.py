"""Runs the programs that are compared, and knows the machine."""
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MISSING = 77  # exit status of a peer whose packages are not installed
LONGEST = 3600  # seconds for a program


class Failed(Exception):
    pass


class Missing(Exception):
    pass


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor():
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def busy_seconds():
    """Of all cores, and of the programs that this one has run; None where the system does not tell."""
    try:
        with open("/proc/stat") as lines:
            times = [int(x) for x in lines.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    own = os.times()
    return (sum(times) - times[3] - times[4]) / os.sysconf("SC_CLK_TCK"), sum(own[:4])


class Programs:
    """Ours and the peers, each run in a process of its own, with an environment that forces no kernels on either."""

    def __init__(self, bench, python, threads):
        self.bench, self.python, self.threads = str(bench), python, threads
        forced = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
        self.environment = {k: v for k, v in os.environ.items() if k not in forced}
        self.coretype = self._run([self.bench, "advice"])[0].strip()
        if self.coretype:  # OpenBLAS is older than the CPU
            self.environment["OPENBLAS_CORETYPE"] = self.coretype
        self.busiest = 0.0  # cores that other programs kept busy, at most, during a program

    def _run(self, command, environment=None):
        """Standard output, and how many cores other programs kept busy meanwhile (0 where that is not known)."""
        before, start = busy_seconds(), time.monotonic()
        try:
            done = subprocess.run(command, env=environment or self.environment, timeout=LONGEST, text=True,
                                  stdin=subprocess.DEVNULL, capture_output=True)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Failed(str(error)) from error
        after, seconds = busy_seconds(), time.monotonic() - start
        if done.returncode == MISSING:
            raise Missing(done.stdout.strip())
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["nothing printed"]
            raise Failed(f"exit status {done.returncode}: {lines[-1]}")
        others = 0.0
        if before and after and seconds > 0.5:  # the clock of /proc/stat ticks in 1/100 s
            others = max(0.0, after[0] - before[0] - (after[1] - before[1])) / seconds
        return done.stdout, others

    def ours(self, *arguments):
        with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
            threads = ["--threads", str(self.threads)]
            command = [self.bench, arguments[0], *threads, *arguments[1:], "--json", file.name]
            others = self._run(command)[1]
            return {**json.loads(file.read().splitlines()[-1]), "others_busy_cores": round(others, 3)}

    def peer(self, program, *arguments):
        environment = {k: v for k, v in self.environment.items() if k != "OPENBLAS_CORETYPE"}
        environment["SIMDINO_BENCH_CORETYPE"] = self.coretype
        threads = ["--threads", str(self.threads)]
        command = [self.python, str(HERE / "peers" / program), arguments[0], *threads, *arguments[1:]]
        out, others = self._run(command, environment)
        return {**json.loads(out.strip().splitlines()[-1]), "others_busy_cores": round(others, 3)}


def middle(results, key):
    return statistics.median(r[key] for r in results)


def say(text=""):
    print(text, flush=True)


def stop(text):
    sys.exit(f"bench: {text}")
