"""The page of what broke elsewhere says what the tests say, and names the test that shows it.

``python tests/test_regressions_page.py`` prints the table anew.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "regressions.md"
HEAD = "| seen in | property | what happened | test |\n|---|---|---|---|\n"

# "httpcore 1093, 830 and 658 (I1): ..." or the same with the properties of several issues.
SEEN = re.compile(
    r"(?P<seen>[a-z][\w.\- /,]*? \d[\w.,\- ()]*?\)|aiopg, aiomysql \([^)]*\))[:.]\s+(?P<what>.*)",
    re.IGNORECASE,
)
PROPERTIES = re.compile(r" ?\((I\d+(?:, I\d+)*)\)")
PROPERTY = re.compile(r"I\d+")


def reproductions() -> Iterator[tuple[Path, str, str]]:
    """Yield each test that reproduces what broke elsewhere: its file, name and docstring."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                found = SEEN.match(text) if node.name.startswith("test_") else None
                if found is not None and PROPERTY.search(found["seen"]):
                    yield path, node.name, text


def row(path: Path, name: str, text: str) -> tuple[int, str]:
    """One line of the table, and where to sort it."""
    found = SEEN.match(text)
    assert found is not None
    properties = list(dict.fromkeys(PROPERTY.findall(found["seen"])))
    seen = PROPERTIES.sub("", found["seen"])
    what = re.split(r"(?<=\w[.;]) ", found["what"], maxsplit=1)[0].rstrip(".;")
    file = path.relative_to(ROOT).as_posix()
    line = (
        f"| {seen} | {', '.join(properties)} | {what} | `{name}` in [{path.name}](../{file}) |\n"
    )
    return int(properties[0][1:]), line


def table() -> str:
    """All of it, by property."""
    return HEAD + "".join(line for _, line in sorted(row(*test) for test in reproductions()))


def test_the_table_is_that_of_the_tests() -> None:
    assert table() in PAGE.read_text(encoding="utf-8")


def test_most_of_the_pools_properties_were_broken_somewhere() -> None:
    """Of I1 to I36 those that nobody's issue is behind are few."""
    shown = {found for _, _, text in reproductions() for found in PROPERTY.findall(text)}
    assert {f"I{number}" for number in (*range(1, 32), 33, 35)} <= shown


if __name__ == "__main__":
    print(table(), end="")
