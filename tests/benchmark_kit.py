"""How the tests of the benchmarks run one.

Not a test module.
"""

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["run_benchmark"]

ROOT = Path(__file__).parents[1]
#: Seconds that one may take on a machine that has other work.
LIMIT = 280


def run_benchmark(module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run ``python -m module arguments...``, without a check of its exit code."""
    # Its loops are its own: warnings that fail a test here stay out of it.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHONASYNCIO")}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
