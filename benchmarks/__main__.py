"""``python -m benchmarks``: measure the goals and say which goals are met.

``ablation`` measures what each feature of the pool costs instead, ``overload`` how much work is
done in time, by which way to queue, when there is too much of it.
"""

import argparse
import gc
import json
import logging
import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import connections, datagrams, echoes, leases, loops
from benchmarks.ablation import ablation
from benchmarks.overload import overload, table
from benchmarks.pairing import Result, run_case
from benchmarks.report import LINE, line, notes
from benchmarks.server_process import pin

GOALS = ("F1", "F2", "F3", "F4", "F5", "F7", "F8", "F9")

# asyncio reads into fresh blocks of 256 KiB; whether malloc maps each anew depends on what a
# process did before, and alone makes two equal programs differ by more than half.  Both sides
# get the same thresholds, once and for all.
MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TOP_PAD_": str(2**22),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what", nargs="?", choices=("goals", "ablation", "overload"), default="goals"
    )
    parser.add_argument("--only", metavar="F1,F4", help="these goals only")
    parser.add_argument("--loop", choices=("asyncio", "uvloop", "both"), default="both")
    parser.add_argument("--rounds", type=int, help="rounds of each pair (7; with --quick 5)")
    parser.add_argument("--quick", action="store_true", help="short slices: less exact")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything there")
    options = parser.parse_args()
    options.only = options.only.upper().split(",") if options.only else list(GOALS)
    unknown = [goal for goal in options.only if goal not in GOALS]
    if unknown:
        parser.error(f"--only {','.join(unknown)}: the goals are {', '.join(GOALS)}")
    if options.what == "ablation":
        options.only = ["A"]
    if options.rounds is None:
        options.rounds = 5 if options.quick else 7
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    present = loops.available()
    if options.loop == "uvloop" and "uvloop" not in present:
        parser.error("--loop uvloop: uvloop is not installed")
    options.loops = present if options.loop == "both" else [options.loop]
    return options


def usable_cores() -> list[int | None]:
    """The cores this process may run on; [None] where that can't be asked for."""
    return [*sorted(os.sched_getaffinity(0))] if hasattr(os, "sched_getaffinity") else [None]


def unpin(cores: list[int | None]) -> None:
    """Let this process run on all of its cores again."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core for core in cores if core is not None})


async def measure(goal: str, loop: str, options: argparse.Namespace) -> list[Result]:
    """Run one goal on the running loop."""
    logging.getLogger("psycopg.pool").setLevel(logging.WARNING)
    scale = 1 if options.quick else 4
    slices = 5 if options.quick else 9
    cores = usable_cores()
    here, there = cores[0], cores[-1]
    match goal:
        case "F1":
            cases = leases.f1(loop, 500 * scale)
        case "F2":
            cases = leases.f2(loop, 500 * scale)
        case "F3":
            cases = leases.f3(loop, 500 * scale)
            slices = 2 if options.quick else 3
        case "F4":
            pin(here)
            cases = echoes.f4(loop, 100 * scale, here)
        case "F8":
            pin(here)
            cases = datagrams.f8(loop, 1000 * scale, there)
        case "A":
            cases = ablation(loop, 500 * scale)
            slices = 3 if options.quick else 9
        case "F7":
            pin(here)
            cases = connections.f7(loop, 1000 if options.quick else 5000, there)
            slices = 1  # a slice is a new process
        case "F9":
            pin(here)
            cases = connections.f9(loop, 64 * scale, there)
        case _:
            # The load on one core, what is measured on another.
            pin(here)
            cases = echoes.f5(loop, 160 * scale, there)
    gc.collect()
    gc.freeze()
    results: list[Result] = []
    try:
        async with cases as prepared:
            for case in prepared:
                lines = await run_case(case, options.rounds, slices)
                for result in lines:
                    print(line(result), flush=True)
                results += lines
    finally:
        unpin(cores)
    return results


def version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    import pulsar_client

    peers = ("uvloop", "psycopg-pool", "asyncio-connection-pool", "SQLAlchemy", "asyncpg")
    found = {name: version(name) or "not installed" for name in peers}
    return {"pulsar-client-sdk": pulsar_client.__version__} | found


def machine() -> dict[str, Any]:
    model = platform.processor()
    try:
        for text in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if text.startswith("model name"):
                model = text.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {"system": platform.platform(), "processor": model, "cores": os.cpu_count()}


def show_overload(options: argparse.Namespace) -> int:
    """Run the policies on a virtual clock and print what each achieves."""
    outcomes = overload((0.8, 1.0, 2.0, 4.0), 5.0 if options.quick else 30.0)
    print("\n".join(table(outcomes)))
    print("everything in units of the capacity; p50 and p99 of what was done in time")
    if options.json is not None:
        results = [outcome.as_json() for outcome in outcomes]
        options.json.write_text(
            json.dumps({"results": results}, indent=1) + "\n", encoding="utf-8"
        )
    return 0


def main() -> int:
    options = arguments()
    if options.what == "overload":
        return show_overload(options)
    missing = {name: value for name, value in MALLOC.items() if os.environ.get(name) != value}
    if missing:
        os.environ.update(missing)
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]])
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "python": sys.version,
        "loops": options.loops,
        "versions": versions(),
        "malloc": MALLOC,
        "rounds": options.rounds,
        "quick": options.quick,
    }
    where = report["machine"]
    print(f"Python {platform.python_version()}, {where['processor']}, {where['cores']} cores")
    print(LINE)
    results: list[Result] = []
    for loop in options.loops:
        for goal in options.only:
            results += loops.run_in(loop, measure(goal, loop, options))
    said = notes(results)
    for text in said:
        print(text)
    met = [result for result in results if result.met is not None]
    if met:
        print(f"{sum(1 for result in met if result.met)} of {len(met)} goals met")
    report["results"] = [result.as_json() for result in results]
    report["notes"] = said
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
