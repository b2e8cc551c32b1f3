"""The documentation is true: its code runs, its commands name what exists, its links lead on.

A ``python`` block is run as a script of its own.  A block that cannot be run has
``<!-- not run: the reason -->`` on the line before it, and is reported as a skipped test.
With ``<!-- needs: a module -->`` it is one where that module is not installed.
"""

import contextlib
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
SHELLS = {"console", "bash", "sh"}
# Tools of the `lint` extra, which need not be installed where the tests run.
TOOLS = {"build", "mypy", "ruff"}
BLOCK_TIME_LIMIT = 60
# A module of each extra whose blocks run where it is installed: "not run: needs the extra load".
EXTRAS = {"load": "hdrh"}

FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<language>[\w+-]*)")
NOT_RUN = re.compile(r" *<!-- (?:not run:(?P<reason>.*)|needs: (?P<module>\w+) )-->\s*")
LINK = re.compile(r"\]\(\s*<?(?P<inline>[^)\s>]+)>?[^)]*\)|^ *\[[^\]]+\]: *(?P<reference>\S+)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    source: str
    line: int  # of the opening fence, from 1
    not_run: str | None  # the reason


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    lines = iter(enumerate(text.splitlines(), 1))
    before = ""
    for number, line in lines:
        if opening := FENCE.match(line):
            body = []
            for _, inside in lines:
                if inside.strip() == opening["fence"]:
                    break
                body.append(inside.removeprefix(opening["indent"]))
            else:
                raise ValueError(f"the block of line {number} is never closed")
            mark = NOT_RUN.fullmatch(before)
            reason = why_not(mark) if mark else None
            yield Block(opening["language"], "\n".join(body) + "\n", number, reason)
            line = ""
        elif NOT_RUN.fullmatch(before):
            raise ValueError(f"the mark of line {number - 1} has no block on the next line")
        before = line


def why_not(mark: re.Match[str]) -> str | None:
    """Return why the block behind a mark is not run here; None if it is."""
    module = mark["module"]
    if module is None:
        return str(mark["reason"]).strip()
    return None if importlib.util.find_spec(module) else f"{module} is not installed"


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command of a shell block; what a console printed is left out."""
    lines = block.source.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.lstrip()[2:] for line in lines if line.lstrip().startswith("$ ")]
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if word in {"&&", "||", ";", "|", "&"}:
                yield words
                words = []
            elif words or "=" not in word:  # not a variable set for the command
                words.append(word)
        yield words


def missing(words: list[str], root: Path) -> list[str]:
    """Return what a command names and does not exist: modules it runs, files of the project."""
    if not words:
        return []
    lost = []
    program, arguments = Path(words[0]).name, words[1:]
    if re.fullmatch(r"python[\d.]*", program) and "-m" in arguments[:-1]:
        module = arguments[arguments.index("-m") + 1]
        if not can_be_run(module):
            lost.append(module)
    elif re.fullmatch(r"python[\d.]*|bash|sh", program) and arguments:
        script = arguments[0]
        if not script.startswith("-") and not (root / script).is_file():
            lost.append(script)
    for word in words:
        path = word.partition("::")[0]
        first, slash, _ = path.removeprefix("./").partition("/")
        inside = slash and not first.startswith(".venv") and (root / first).is_dir()
        if (inside or word.startswith("./")) and not (root / path).exists() and path not in lost:
            lost.append(path)
    return lost


def can_be_run(module: str) -> bool:
    """Tell whether ``python -m module`` finds something to run."""
    if module.partition(".")[0] in TOOLS:
        return True
    try:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{module}.__main__")
    except ModuleNotFoundError:
        return False
    return spec is not None


def broken_links(page: Path, text: str) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    outside = list(text.splitlines())
    for block in blocks(text):
        end = block.line + block.source.count("\n") + 1
        outside[block.line - 1 : end] = [""] * (end - block.line + 1)
    lost = []
    for line in outside:
        for found in LINK.finditer(re.sub(r"`[^`]*`", "", line)):
            target = (found["inline"] or found["reference"]).partition("#")[0]
            elsewhere = re.match(r"[a-z][a-z+.-]*:", target)
            if target and not elsewhere and not (page.parent / target).exists():
                lost.append(target)
    return lost


def run(block: Block, directory: Path) -> None:
    """Run a block as a script; it fails by its exit code, a warning or the time it takes."""
    script = directory / "block.py"
    # Lines are numbered as on the page.
    script.write_text("\n" * block.line + block.source, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-W", "error", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # with what it starts, it can be ended as a group
    )
    with process:
        try:
            output, _ = process.communicate(timeout=BLOCK_TIME_LIMIT)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the block of line {block.line} takes more than {BLOCK_TIME_LIMIT} s")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        pytest.fail(f"the block of line {block.line} failed:\n{output}", pytrace=False)


def extra_is_there(reason: str) -> bool:
    """Tell whether the only reason not to run a block is an extra, which is installed."""
    found = re.fullmatch(r"needs the extra (\w+)", reason)
    module = EXTRAS.get(found[1]) if found else None
    return module is not None and importlib.util.find_spec(module) is not None


def documented(languages: set[str]) -> Iterator[tuple[Path, Block]]:
    for page in PAGES if languages == SHELLS else GUIDES:
        for block in blocks(page.read_text(encoding="utf-8")) if page.exists() else ():
            if block.language in languages:
                yield page, block


def parameters(languages: set[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "block",
        [
            pytest.param(block, id=f"{page.relative_to(ROOT)}:{block.line}")
            for page, block in documented(languages)
        ],
    )


# -- the documentation -----------------------------------------------------------------------


@pytest.mark.time_limit(BLOCK_TIME_LIMIT + 30)
@parameters({"python"})
def test_code_runs(block: Block, tmp_path: Path) -> None:
    if block.not_run is not None and not extra_is_there(block.not_run):
        assert block.not_run, "a block that is not run needs a reason"
        pytest.skip(f"not run: {block.not_run}")
    run(block, tmp_path)


@parameters(SHELLS)
def test_commands_name_what_exists(block: Block) -> None:
    assert not [lost for words in commands(block) for lost in missing(words, ROOT)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken_links(page, page.read_text(encoding="utf-8"))


def test_the_readme_shows_code_that_is_run() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = [block for block in blocks(readme) if block.language == "python"]
    assert [block for block in found if block.not_run is None]


# -- the checks themselves -------------------------------------------------------------------

PAGE = """\
# Title

```python
a = 1

b = 2
```

<!-- not run: needs a server -->
```python
c
```

1. item
   ```console
   $ X=1 python -m examples.echo && ls
   some output
   $ python -m venv \\
     .venv
   ```

````md
```python
no block
```
````
"""


def test_blocks_of_a_page() -> None:
    found = list(blocks(PAGE))
    assert [(block.language, block.line, block.not_run) for block in found] == [
        ("python", 3, None),
        ("python", 10, "needs a server"),
        ("console", 15, None),
        ("md", 22, None),
    ]
    assert found[0].source == "a = 1\n\nb = 2\n"
    assert [words for words in commands(found[2]) if words] == [
        ["python", "-m", "examples.echo"],
        ["ls"],
        ["python", "-m", "venv", ".venv"],
    ]


def test_a_block_may_need_a_module() -> None:
    page = "<!-- needs: json -->\n```python\n```\n<!-- needs: gone_for_good -->\n```python\n```\n"
    assert [block.not_run for block in blocks(page)] == [None, "gone_for_good is not installed"]


def test_a_block_that_is_not_closed_is_an_error() -> None:
    with pytest.raises(ValueError, match="line 2 is never closed"):
        list(blocks("\n```python\na = 1\n"))


def test_a_mark_without_a_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="line 1 has no block"):
        list(blocks("<!-- not run: why -->\n\n```python\n```\n"))


def shell(source: str, language: str = "bash") -> Block:
    return Block(language, source, 1, None)


@pytest.mark.parametrize(
    ("command", "lost"),
    [
        ("python3 -m venv .venv && .venv/bin/pip install -e '.[test]'", []),
        ("python -m pytest tests/test_here.py::test_a -k 'a and b'  # a comment", []),
        ("LEVEL=1 bash tests/go.sh | tail -1", []),
        (".venv/bin/mypy --strict", []),
        (".venv/bin/python -m pulsar_client.nowhere", ["pulsar_client.nowhere"]),
        ("true; python3.12 -m no_such_package.module", ["no_such_package.module"]),
        ("python -m json", ["json"] if sys.version_info < (3, 14) else []),
        ("python -m json.tool", []),
        ("python -m pytest tests/test_gone.py::test_a", ["tests/test_gone.py"]),
        ("bash tests/gone.sh", ["tests/gone.sh"]),
        ("./gone.sh", ["./gone.sh"]),
        ("python gone.py", ["gone.py"]),
    ],
)
def test_a_command_that_names_nothing_is_found(
    command: str, lost: list[str], tmp_path: Path
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_here.py").touch()
    (tmp_path / "tests" / "go.sh").touch()
    assert [
        name for words in commands(shell(command)) for name in missing(words, tmp_path)
    ] == lost


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "here.md").touch()
    text = """\
[a](here.md) and [b](here.md#part "Title"), [c](#part), [d](https://host/x), [e](gone.md#part)
![image](gone.png) `[code](gone-too.md)` [f][f]

[f]: gone/else.md

```text
[in a block](gone-as-well.md)
```

[last](./last.md)
"""
    assert broken_links(tmp_path / "page.md", text) == [
        "gone.md",
        "gone.png",
        "gone/else.md",
        "./last.md",
    ]


def test_a_block_runs_as_a_script(tmp_path: Path) -> None:
    run(
        Block("python", "import pulsar_client\nassert __name__ == '__main__'\n", 1, None), tmp_path
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("assert 1 == 2\n", "line 8, in <module>"),
        ("import warnings\nwarnings.warn('planted')\n", "UserWarning: planted"),
        ("raise SystemExit(3)\n", "the block of line 7 failed"),
    ],
)
def test_a_block_that_fails_is_found(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match=re.escape(message)):
        run(Block("python", source, 7, None), tmp_path)


def test_a_block_that_does_not_end_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "BLOCK_TIME_LIMIT", 0.3)
    with pytest.raises(pytest.fail.Exception, match=r"takes more than 0\.3 s"):
        run(Block("python", "import threading\nthreading.Event().wait()\n", 1, None), tmp_path)
