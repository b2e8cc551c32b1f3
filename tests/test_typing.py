"""The types that users see: right usage passes ``mypy --strict``, wrong usage does not."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
USAGE = sorted((ROOT / "tests" / "typing").glob("*.py"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("mypy") is None, reason="mypy is not installed (extra: lint)"
    ),
]


def mypy(*paths: Path) -> subprocess.CompletedProcess[str]:
    """Check files as a user's mypy would, the library's own sources being found."""
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *paths],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_right_usage_passes() -> None:
    assert USAGE
    result = mypy(*USAGE)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("raise ConnectionClosed(sent='yes').nothing", "attr-defined"),
        ("Pool('redis://localhost')", "arg-type"),
        ("Pool(creator, pool_size='ten')", "arg-type"),
        ("Pool(creator, nonsense=1)", "call-arg"),
    ],
)
def test_wrong_usage_is_found(wrong: str, code: str, tmp_path: Path) -> None:
    usage = tmp_path / "planted_usage.py"
    usage.write_text(f"""\
from pulsar_client import ConnectionClosed, Pool

class Thing:
    closed = False

    def close(self) -> None: ...

async def creator() -> Thing:
    return Thing()

Pool(creator)
{wrong}
""")
    result = mypy(usage)
    assert result.returncode == 1, result.stdout
    errors = [line for line in result.stdout.splitlines() if ": error:" in line]
    assert errors
    assert all(line.startswith(f"{usage}:12: error: ") for line in errors), result.stdout
    assert any(f"[{code}]" in line for line in errors), result.stdout
