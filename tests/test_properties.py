"""The table of properties in the docs and the tests that name them say the same."""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "properties.md"
ROW = re.compile(r"\| ([IUPLA]\d+) \| (.+) \| (.+) \|")
NUMBER = re.compile(r"(?<![A-Za-z0-9])([IUPLAiupla]\d+)(?![0-9])")


def rows() -> dict[str, list[str]]:
    """The files that the table names, by the number of the property."""
    return {
        match[1]: re.findall(r"`([^`]+)`", match[3])
        for match in map(ROW.fullmatch, PAGE.read_text(encoding="utf-8").splitlines())
        if match
    }


def test_every_file_of_the_table_names_the_property() -> None:
    assert len(rows()) > 60, "the table was not found"
    for number, files in rows().items():
        assert files, number
        for file in files:
            named = NUMBER.findall((TESTS / file).read_text(encoding="utf-8"))
            assert number in {found.upper() for found in named}, f"{file} does not name {number}"


def test_every_property_that_a_test_names_is_in_the_table() -> None:
    known = rows()
    for path in sorted(TESTS.rglob("test_*.py")):
        for docstring_or_name in re.findall(
            r'"""(.*?)"""|def (test_\w+)', path.read_text(encoding="utf-8"), re.DOTALL
        ):
            for found in NUMBER.findall("".join(docstring_or_name).replace("_", " ")):
                if re.fullmatch(r"[IUP]\d+", found.upper()):
                    assert found.upper() in known, f"{path.name} names {found}"
