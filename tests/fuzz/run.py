"""Fuzzing for as long as you like: ``python tests/fuzz/run.py --inputs 1000000 --json fuzz.json``.

Each target runs in a process of its own with bounded memory, one after the other. Engines: ``atheris``
(coverage-guided; ``pip install 'cipherward[fuzz]'``) or ``mutator`` (the same mutations from a seed, without feedback;
needs nothing). A crash is anything but an error of ours; a hang is an input that takes longer than --timeout. Both are
written to --crashes as files, which ``--replay FILE --target NAME`` runs again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random
from types import FrameType

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "kit"))

MEMORY_MB = 2048
"""Address space that inputs may make a target ask for, beyond what it has before the first."""
_COVERAGE = re.compile(r"cov: (\d+) ft: (\d+)")


class Hang(BaseException):
    """An input takes too long. Not an Exception, so that nothing in between swallows it."""


def _rss_mb() -> float:
    """Of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


class Runner:
    """Runs inputs at one target in this process, and counts."""

    def __init__(self, name: str, timeout: float, crashes: Path) -> None:
        from fuzz_all import SPECS

        warnings.simplefilter("ignore")  # a library's opinion of a certificate is no crash
        self.target = SPECS[name].target()
        self._timeout, self._crashes = timeout, crashes
        self.inputs = self.accepted = 0
        self.slowest = 0.0
        self.found: dict[str, str] = {}
        for one in self.target.corpus[:1]:  # caches fill, workers start: not an input's doing
            with contextlib.suppress(Exception):
                self.target.once(one)
        self.started, self.rss_before = time.monotonic(), _rss_mb()
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = mapped + MEMORY_MB * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.signal(signal.SIGALRM, self._too_long)

    @staticmethod
    def _too_long(_number: int, _frame: FrameType | None) -> None:
        raise Hang

    def one(self, data: bytes) -> None:
        """One input; what it should not do is kept."""
        self.inputs += 1
        started = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, self._timeout)
        try:
            self.accepted += self.target.once(data)
        except Hang as error:
            self._keep(data, error)
        except Exception as error:
            self._keep(data, error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.slowest = max(self.slowest, time.perf_counter() - started)

    def _keep(self, data: bytes, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "fuzz" not in Path(frame.filename).parts] or list(frames)
        place = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
        if place in self.found:
            return
        path = self._crashes / f"{self.target.name.replace(' ', '-')}-{hashlib.sha256(data).hexdigest()[:12]}"
        self._crashes.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.found[place] = str(path)
        text = "".join(traceback.format_exception(error))
        print(f"CRASH {self.target.name}: {place}: {path}\n{text[-1500:]}", file=sys.stderr, flush=True)

    def result(self) -> dict[str, object]:
        """What was seen."""
        # Not ru_maxrss: that begins with what the parent had.
        own = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        return {
            "target": self.target.name,
            "inputs": self.inputs,
            "accepted": self.accepted,
            "seconds": round(time.monotonic() - self.started, 2),
            "crashes": sum(not place.startswith("Hang") for place in self.found),
            "hangs": sum(place.startswith("Hang") for place in self.found),
            "found": self.found,
            "slowest_ms": round(1000 * self.slowest, 1),
            "rss_before_mb": round(self.rss_before, 1),
            "peak_rss_mb": round(own, 1),
            "largest_child_mb": round(children, 1),
        }


def run_mutator(runner: Runner, count: int, seed: int) -> None:
    """``count`` inputs that follow from the seed."""
    inputs = runner.target.inputs(Random(f"{seed} {runner.target.name}"))
    for _ in range(count):
        runner.one(next(inputs))


def run_atheris(runner: Runner, count: int, seed: int, finish: object) -> None:
    """``count`` inputs, kept and mutated further where they reach new code. Does not return."""
    import atheris
    from fuzz_target import HOSTILE

    _instrument(atheris)

    def test(data: bytes) -> None:
        runner.one(data)
        if runner.inputs >= count:
            finish()  # type: ignore[operator]

    def mutate(data: bytes, most: int, number: int) -> bytes:
        rng = Random(number)
        if (
            rng.random() < 0.5
        ):  # libFuzzer keeps what is refused in a new way: begin with what is valid as often
            data = rng.choice(runner.target.corpus)
        elif rng.random() < 0.1:
            return bytes(atheris.Mutate(data, len(data) + 8))[:most]
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            data = runner.target.mutate(data, rng)
        return data[:most]

    with tempfile.TemporaryDirectory() as folder:
        for number, one in enumerate([*runner.target.corpus, *HOSTILE]):
            (Path(folder) / str(number)).write_bytes(one)
        arguments = [sys.argv[0], folder, f"-seed={seed % 2**31 or 1}", "-max_len=1048576", "-len_control=0"]
        arguments += ["-rss_limit_mb=0", "-timeout=3600", "-print_final_stats=0", "-reload=0"]
        atheris.Setup(arguments, test, custom_mutator=mutate)
        atheris.Fuzz()


def _instrument(atheris: object) -> None:
    """Every function of ours that is loaded reports which branches inputs take."""
    import inspect

    done = set()

    def each(holder: object, depth: int) -> None:
        for value in list(vars(holder).values()):
            function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if inspect.isfunction(function) and function.__module__.startswith("cipherward."):
                if function.__code__ not in done and not inspect.iscoroutinefunction(function):
                    with contextlib.suppress(Exception):  # what cannot be instrumented still runs
                        atheris.instrument_func(function)  # type: ignore[attr-defined]
                    done.add(function.__code__)
            elif inspect.isclass(value) and value.__module__.startswith("cipherward.") and depth < 2:
                each(value, depth + 1)

    for name, module in list(sys.modules.items()):
        if name.startswith("cipherward.") and ".proto." not in name:
            each(module, 0)


def child(arguments: argparse.Namespace) -> None:
    """One target, in this process."""
    from fuzz_target import close_all

    runner = Runner(arguments.target, arguments.timeout, arguments.crashes)

    def finish() -> None:
        Path(arguments.result).write_text(json.dumps(runner.result()))
        close_all()
        sys.stderr.flush()
        os._exit(0)

    if arguments.engine == "atheris":
        run_atheris(runner, arguments.inputs, arguments.seed, finish)
    else:
        run_mutator(runner, arguments.inputs, arguments.seed)
    finish()


def shares(names: list[str], inputs: int) -> dict[str, int]:
    """How many inputs each target gets: by its weight, all together exactly ``inputs``."""
    from fuzz_all import SPECS

    total = sum(SPECS[name].weight for name in names)
    found = {name: inputs * SPECS[name].weight // total for name in names}
    found[names[0]] += inputs - sum(found.values())
    return found


def parent(arguments: argparse.Namespace) -> int:
    """All targets, one after the other; prints a line for each and writes the record."""
    from fuzz_all import SPECS

    names = [name for name in SPECS if arguments.target in (None, name)]
    if not names:
        print(f"there is no target {arguments.target!r}; there are: {', '.join(SPECS)}", file=sys.stderr)
        return 2
    results, started = [], time.monotonic()
    for name, count in shares(names, arguments.inputs).items():
        results.append(_in_child(name, count, arguments))
        last = results[-1]
        print(
            f"{sum(one['inputs'] for one in results):>9,} {name:32} {last['inputs']:>8,} inputs "
            f"{last['seconds']:>7} s  {last['crashes']} crashes, {last['hangs']} hangs, slowest "
            f"{last['slowest_ms']} ms, peak {last['peak_rss_mb']} MB {last.get('coverage', '')}",
            flush=True,
        )
        if arguments.json:
            Path(arguments.json).write_text(
                json.dumps(_summary(results, arguments, started), indent=1) + "\n"
            )
    summary = _summary(results, arguments, started)
    print(json.dumps({key: value for key, value in summary.items() if key != "targets"}))
    return 0 if summary["crashes"] == summary["hangs"] == summary["failed"] == 0 else 1


def _in_child(name: str, count: int, arguments: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, str(Path(__file__)), "--child", "--target", name, "--inputs", str(count)]
        command += ["--engine", arguments.engine, "--seed", str(arguments.seed), "--result", str(result)]
        command += ["--timeout", str(arguments.timeout), "--crashes", str(arguments.crashes)]
        done = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, check=False)
        said = done.stderr.decode(errors="replace")
        for line in said.splitlines():
            if line.startswith("CRASH"):
                print(line, flush=True)
        if not result.exists():  # it died: native code, or the memory limit
            print(f"{name} died with status {done.returncode}\n{said[-3000:]}", flush=True)
            return {
                **dict.fromkeys(("inputs", "accepted", "seconds", "slowest_ms", "hangs"), 0),
                "target": name,
                "crashes": 1,
                "peak_rss_mb": 0,
                "largest_child_mb": 0,
                "failed": True,
            }
        found = json.loads(result.read_text())
        if coverage := _COVERAGE.findall(said):
            edges, features = coverage[-1]
            found["coverage"] = {"edges": int(edges), "features": int(features)}
        return found


def _summary(results: list[dict], arguments: argparse.Namespace, started: float) -> dict:
    return {
        "figure": "fuzz",
        "inputs": sum(one["inputs"] for one in results),
        "accepted": sum(one["accepted"] for one in results),
        "crashes": sum(one["crashes"] for one in results),
        "hangs": sum(one["hangs"] for one in results),
        "failed": sum(one.get("failed", False) for one in results),
        "seconds": round(time.monotonic() - started, 1),
        "slowest_ms": max(one["slowest_ms"] for one in results),
        "peak_rss_mb": max(one["peak_rss_mb"] for one in results),
        "largest_child_mb": max(one["largest_child_mb"] for one in results),
        "engine": arguments.engine,
        "seed": arguments.seed,
        "timeout_s": arguments.timeout,
        "memory_mb": MEMORY_MB,
        "python": platform.python_version(),
        "targets": results,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--target", help="one target only; --list names them")
    parser.add_argument("--engine", choices=("atheris", "mutator"), default="mutator")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for one input")
    parser.add_argument("--json", help="file for the record, written after every target")
    parser.add_argument(
        "--crashes", type=Path, default=Path("fuzz-crashes"), help="folder for what was found"
    )
    parser.add_argument("--replay", type=Path, help="run this one input at --target")
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.list:
        from fuzz_all import SPECS

        print("\n".join(SPECS))
        return 0
    if arguments.replay:
        from fuzz_all import SPECS
        from fuzz_target import close_all

        try:
            accepted = SPECS[arguments.target].target().once(arguments.replay.read_bytes())
            print("accepted" if accepted else "refused")
        finally:
            close_all()
        return 0
    if arguments.child:
        child(arguments)
    return parent(arguments)


if __name__ == "__main__":
    sys.exit(main())
