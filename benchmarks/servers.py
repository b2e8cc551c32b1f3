"""``python -m benchmarks.servers``: our server beside others, under the same faults.

Every server is a child of this command, on a free port of the loopback, and ends with it.  The
same client drives all of them: see `benchmarks.server_faults` for what is done to them.  One
that is not installed is left out and named.
"""

import argparse
import asyncio
import compileall
import json
import platform
import statistics
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.__main__ import machine, version
from benchmarks.server_faults import FAULTS, QUICK, Fault, Limits, Outcome
from benchmarks.server_rivals import RIVALS, ROOT, Rival, Settings


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.servers", description=__doc__)
    parser.add_argument("--only", metavar="A,B", help=f"these servers: {', '.join(RIVALS)}")
    parser.add_argument("--faults", metavar="A,B", help=f"these faults: {', '.join(FAULTS)}")
    parser.add_argument("--rounds", type=int, default=3, help="of each fault (3)")
    parser.add_argument("--quick", action="store_true", help="shorter waits: only a look")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything there")
    options = parser.parse_args()
    for option, names in (("only", RIVALS), ("faults", FAULTS)):
        text = getattr(options, option)
        chosen = text.split(",") if text else list(names)
        unknown = [name for name in chosen if name not in names]
        if unknown:
            parser.error(f"--{option} {','.join(unknown)}: there are {', '.join(names)}")
        setattr(options, option, chosen)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    return options


async def measure(
    fault: Fault, rivals: list[Rival], limits: Limits, rounds: int
) -> dict[str, list[Outcome]]:
    """Do to all servers the same, in turns."""
    outcomes: dict[str, list[Outcome]] = {rival.name: [] for rival in rivals}
    for _ in range(rounds):
        turn = asyncio.Lock()
        found = await asyncio.gather(*(fault.measure(rival, limits, turn) for rival in rivals))
        for rival, outcome in zip(rivals, found, strict=True):
            outcomes[rival.name].append(outcome)
    return outcomes


def cell(fault: Fault, outcomes: list[Outcome]) -> str:
    """The median over the rounds, with its spread, and the sum of what failed."""
    values = [outcome.value for outcome in outcomes if outcome.value is not None]
    words = []
    if values:
        digits = 0 if fault.name == "crash" else 2
        unit = f" {fault.unit}".rstrip()
        words.append(f"{statistics.median(values):.{digits}f}{unit}")
        if len(values) > 1 and min(values) != max(values):
            words[0] += f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
    words += dict.fromkeys(outcome.said for outcome in outcomes if outcome.said)
    measured = [outcome for outcome in outcomes if outcome.value is not None]
    for number, kind in enumerate(("new", "kept")):
        tried = sum(sum(outcome.tried[number : number + 1]) for outcome in measured)
        failed = sum(sum(outcome.failed[number : number + 1]) for outcome in measured)
        if tried:
            words.append(f"{failed} of {tried} {kind} failed")
    return ", ".join(words)


def commands(rivals: list[Rival]) -> dict[str, str]:
    """How each server is started, with all that is set."""
    settings = Settings(timeout=5, graceful=3)
    return {rival.name: " ".join(rival.command(8060, settings)) for rival in rivals}


def main() -> int:
    options = arguments()
    chosen = [RIVALS[name] for name in options.only]
    rivals = [rival for rival in chosen if rival.version() is not None]
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "python": sys.version,
        "uvloop": version("uvloop"),
        "versions": {rival.name: rival.version() for rival in rivals},
        "commands": commands(rivals),
        "rounds": options.rounds,
        "quick": options.quick,
    }
    where = report["machine"]
    print(f"Python {platform.python_version()}, {where['processor']}, {where['cores']} cores")
    print(f"uvloop {report['uvloop'] or 'is not installed'}")
    if options.quick:
        print("quick: shorter waits than the titles say")
    for rival in rivals:
        print(f"{rival.name}: {rival.version()}\n    {report['commands'][rival.name]}")
    for rival in chosen:
        if rival not in rivals:
            print(f"{rival.name} is not installed: left out")
    if not rivals:
        print("nothing to measure", file=sys.stderr)
        return 3
    print("\n| | " + " | ".join(rival.name for rival in rivals) + " |")
    print("|---" * (len(rivals) + 1) + "|", flush=True)
    # A checkout need not have bytecode, as what is installed does: workers would compile it anew.
    for folder in ("pulsar_client", "benchmarks"):
        compileall.compile_dir(ROOT / folder, quiet=2)
    limits = QUICK if options.quick else Limits()
    results: dict[str, Any] = {}
    for fault in (FAULTS[name] for name in options.faults):
        outcomes = asyncio.run(measure(fault, rivals, limits, options.rounds))
        cells = [cell(fault, outcomes[rival.name]) for rival in rivals]
        print(f"| {fault.title} | " + " | ".join(cells) + " |", flush=True)
        results[fault.name] = {
            name: [asdict(outcome) for outcome in found] for name, found in outcomes.items()
        }
    report["limits"] = asdict(limits)
    report["results"] = results
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
