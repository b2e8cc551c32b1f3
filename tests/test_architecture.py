"""The house rules of the package: who may import whom, and what a module may be.

The rules read the source: an import counts wherever it stands, inside a function or under
``TYPE_CHECKING`` too.  Each rule is a function from a package's directory to its breaches, and is
itself tested on a small tree with one breach planted.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pulsar_client"

# Units of a line know those of the lines below, and not each other.
LAYERS = (
    {"__init__", "__main__"},
    {"app", "load", "metrics"},
    {"clients", "servers"},
    {"protocols", "pool"},
    {"addresses", "durations", "tls", "events", "testing"},
    {"exceptions"},
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}

MAX_LINES = 450
BANNED_NAMES = {"utils", "util", "helpers", "common", "base", "core", "mixins", "manager"}
OUTSIDE = {"tests", "benchmarks", "examples"}
THIRD_PARTY = {"tenacity", "_typeshed"}  # the latter: names of type checkers
THIRD_PARTY_IN_FUNCTIONS = {"tenacity", "uvloop"}
# Of extras that one unit alone needs; imported in functions only.
THIRD_PARTY_OF_UNIT = {"load": {"hdrh", "rich", "distributed"}}
# Of extras that each module of a unit is about; without them it can't be imported.
THIRD_PARTY_OF_MODULES = {"metrics": {"opentelemetry", "prometheus_client"}}
# A plug-in of pytest can't do without it; nothing else imports the module.
THIRD_PARTY_OF_MODULE: dict[tuple[str, ...], set[str]] = {("load", "pytest_plugin"): {"pytest"}}
# Units that may use the test kit.
TESTERS = {"testing", "load"}


@dataclass(frozen=True)
class Import:
    """One import statement of a module."""

    target: str  # "a.b" for `import a.b`; for `from a import b` too when that is a module
    line: int
    relative: bool
    in_function: bool


class Module:
    """A source file: its dotted name, its tree, and what it imports."""

    def __init__(self, path: Path, package: Path, known: set[str]) -> None:
        self.path = path
        self.parts = path.relative_to(package).with_suffix("").parts
        self.unit = self.parts[0]
        self.name = dotted(path, package)
        self.source = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.source)
        self.imports = list(imports(self.tree, known, in_function=False))

    def at(self, line: int) -> str:
        """Return the place of a line, for a message."""
        return f"{'/'.join(self.parts)}.py:{line}"


def dotted(path: Path, package: Path) -> str:
    parts = (package.name, *path.relative_to(package).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(node: ast.AST, known: set[str], *, in_function: bool) -> Iterator[Import]:
    """Yield every import under a node, those by ``import_module("name")`` included."""
    for child in ast.iter_child_nodes(node):
        inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        targets: list[str] = []
        relative = False
        match child:
            case ast.Import():
                targets = [alias.name for alias in child.names]
            case ast.ImportFrom():
                relative = child.level > 0
                origin = child.module or ""
                for alias in child.names:
                    submodule = f"{origin}.{alias.name}"
                    targets.append(submodule if submodule in known else origin)
            case ast.Call(args=[ast.Constant(value=str(name)), *_]):
                function = ast.unparse(child.func).rpartition(".")[2]
                targets = [name] if function in {"import_module", "__import__"} else []
        for target in dict.fromkeys(targets):
            yield Import(target, getattr(child, "lineno", 0), relative, in_function)
        yield from imports(child, known, in_function=inside)


@cache
def modules(package: Path) -> tuple[Module, ...]:
    """Read a package, once."""
    paths = sorted(package.rglob("*.py"))
    known = {dotted(path, package) for path in paths}
    return tuple(Module(path, package, known) for path in paths)


def inner(package: Path) -> Iterator[tuple[Module, Import, str]]:
    """Yield the imports of the package's own modules, with the unit each belongs to."""
    for module in modules(package):
        for found in module.imports:
            root, _, rest = found.target.partition(".")
            if root == package.name and not found.relative:
                yield module, found, rest.partition(".")[0] or "__init__"


# -- the rules -------------------------------------------------------------------------------


def every_unit_has_a_layer(package: Path) -> list[str]:
    units = sorted({module.unit for module in modules(package)})
    return [f"{unit} has no layer" for unit in units if unit not in LEVEL]


def imports_go_down(package: Path) -> list[str]:
    return [
        f"{module.at(found.line)}: {module.unit} must not import {unit}"
        for module, found, unit in inner(package)
        if unit != module.unit and LEVEL.get(module.unit, 99) >= LEVEL.get(unit, -1)
    ]


def pool_knows_no_protocol(package: Path) -> list[str]:
    return [
        f"{module.at(found.line)}: pool must not import {found.target}"
        for module, found, unit in inner(package)
        if module.unit == "pool" and unit == "protocols"
    ]


def no_import_cycles(package: Path) -> list[str]:
    graph: dict[str, set[str]] = {module.name: set() for module in modules(package)}
    for module, found, _ in inner(package):
        # `from package import name` where name is no module: the package itself is imported
        if found.target in graph:
            graph[module.name].add(found.target)
    breaches: list[str] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            breaches.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for target in sorted(graph[name]):
                visit(target, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    return breaches


def no_relative_imports(package: Path) -> list[str]:
    return [
        f"{module.at(found.line)}: relative import"
        for module in modules(package)
        for found in module.imports
        if found.relative
    ]


def no_test_code_is_imported(package: Path) -> list[str]:
    return [
        f"{module.at(found.line)}: must not import {found.target}"
        for module in modules(package)
        for found in module.imports
        if found.target.partition(".")[0] in OUTSIDE
        or (
            module.unit not in TESTERS
            and f"{found.target}.".startswith(f"{package.name}.testing.")
        )
    ]


def third_parties_are_few(package: Path) -> list[str]:
    breaches = []
    for module in modules(package):
        for found in module.imports:
            root = found.target.partition(".")[0]
            allowed = THIRD_PARTY | THIRD_PARTY_OF_MODULES.get(module.unit, set())
            allowed = allowed | THIRD_PARTY_OF_MODULE.get(module.parts, set())
            if found.in_function:
                allowed |= THIRD_PARTY_IN_FUNCTIONS | THIRD_PARTY_OF_UNIT.get(module.unit, set())
            own = found.relative or root in {package.name, *OUTSIDE}
            if not own and root not in sys.stdlib_module_names and root not in allowed:
                breaches.append(f"{module.at(found.line)}: must not import {root} here")
    return breaches


def init_modules_only_reexport(package: Path) -> list[str]:
    return [
        f"{module.at(node.lineno)}: {ast.unparse(node).splitlines()[0]}"
        for module in modules(package)
        if module.parts[-1] == "__init__"
        for node in module.tree.body
        if not only_names(node)
    ]


def only_names(node: ast.stmt) -> bool:
    match node:
        case ast.Expr(value=ast.Constant(value=str())) | ast.ImportFrom():
            return True
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=value)
            | ast.AnnAssign(target=ast.Name(id=name), value=value)
        ):
            literal = isinstance(value, ast.Constant | ast.List | ast.Tuple)
            return literal and name in {"__all__", "__version__"}
    return False


def files_are_short(package: Path) -> list[str]:
    return [
        f"{module.at(lines)}: {lines} lines, at most {MAX_LINES}"
        for module in modules(package)
        if (lines := len(module.source.splitlines())) > MAX_LINES
    ]


def names_say_something(package: Path) -> list[str]:
    return [
        f"{module.at(1)}: {part} names no concept"
        for module in modules(package)
        for part in module.parts
        if part.strip("_") in BANNED_NAMES
    ]


Rule = Callable[[Path], list[str]]
RULES: tuple[Rule, ...] = (
    every_unit_has_a_layer,
    imports_go_down,
    pool_knows_no_protocol,
    no_import_cycles,
    no_relative_imports,
    no_test_code_is_imported,
    third_parties_are_few,
    init_modules_only_reexport,
    files_are_short,
    names_say_something,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps(rule: Rule) -> None:
    assert not rule(PACKAGE)


# -- the rules themselves --------------------------------------------------------------------

TREE = {
    "__init__.py": "'Names.'\nfrom toy.pool import Pool\n__all__ = ['Pool']\n__version__ = '1'\n",
    "__main__.py": "import toy.app.worker\nprint(toy)\n",
    "exceptions.py": "import asyncio\n",
    "events.py": "from __future__ import annotations\nfrom toy.exceptions import ToyError\n",
    "testing/__init__.py": "",
    "testing/clock.py": "import toy.exceptions\n",
    "protocols/__init__.py": "from toy.protocols.connection import Connection\n",
    "protocols/connection.py": "from toy import events\nfrom toy.exceptions import ToyError\n",
    "pool/__init__.py": "from toy.pool.pool import Pool\n",
    "pool/pool.py": "import tenacity\nfrom toy.events import Event\nfrom toy.pool import ledger\n",
    "pool/ledger.py": "import heapq\n",
    "servers/__init__.py": "",
    "servers/server.py": "from toy.protocols import Connection\n",
    "app/__init__.py": "",
    "app/worker.py": "def loop():\n    import uvloop\n    import toy.servers.server\n",
    "load/report.py": "import toy.testing.clock\ndef bars():\n    import rich.progress\n",
}

BREACHES: dict[str, tuple[Rule, str, str, str]] = {
    "new unit": (every_unit_has_a_layer, "stuff.py", "", "stuff has no layer"),
    "upwards": (
        imports_go_down,
        "events.py",
        "import toy.pool.pool",
        "events.py:1: events must not import pool",
    ),
    "upwards, for types": (
        imports_go_down,
        "protocols/idle.py",
        "if TYPE_CHECKING:\n    from toy.servers.server import Server",
        "protocols/idle.py:2: protocols must not import servers",
    ),
    "upwards, in a function": (
        imports_go_down,
        "exceptions.py",
        "class A:\n    async def f(self):\n        from toy import events",
        "exceptions.py:3: exceptions must not import events",
    ),
    "upwards, by name": (
        imports_go_down,
        "exceptions.py",
        "import importlib\nx = importlib.import_module('toy.app.worker')",
        "exceptions.py:2: exceptions must not import app",
    ),
    "the public names from inside": (
        imports_go_down,
        "servers/server.py",
        "from toy import Pool",
        "servers/server.py:1: servers must not import __init__",
    ),
    "sideways": (
        imports_go_down,
        "app/runner.py",
        "import toy.load",
        "app/runner.py:1: app must not import load",
    ),
    "pool": (
        pool_knows_no_protocol,
        "pool/stats.py",
        "from toy.protocols.connection import Connection",
        "pool/stats.py:1: pool must not import toy.protocols.connection",
    ),
    "cycle": (
        no_import_cycles,
        "pool/ledger.py",
        "from toy.pool.pool import Pool",
        "toy.pool.pool -> toy.pool.ledger -> toy.pool.pool",
    ),
    "cycle by way of the names of a unit": (
        no_import_cycles,
        "pool/ledger.py",
        "def f():\n    from toy.pool import Pool",
        "toy.pool -> toy.pool.pool -> toy.pool.ledger -> toy.pool",
    ),
    "relative": (
        no_relative_imports,
        "pool/ledger.py",
        "from . import pool",
        "pool/ledger.py:1: relative import",
    ),
    "the test kit": (
        no_test_code_is_imported,
        "servers/server.py",
        "from toy import testing",
        "servers/server.py:1: must not import toy.testing",
    ),
    "outside": (
        no_test_code_is_imported,
        "pool/ledger.py",
        "import benchmarks.lease",
        "pool/ledger.py:1: must not import benchmarks.lease",
    ),
    "third party": (
        third_parties_are_few,
        "pool/ledger.py",
        "def f():\n    import attrs",
        "pool/ledger.py:2: must not import attrs here",
    ),
    "uvloop at import": (
        third_parties_are_few,
        "app/worker.py",
        "import uvloop",
        "app/worker.py:1: must not import uvloop here",
    ),
    "of another unit's extra": (
        third_parties_are_few,
        "app/worker.py",
        "def f():\n    import rich",
        "app/worker.py:2: must not import rich here",
    ),
    "code in __init__": (
        init_modules_only_reexport,
        "pool/__init__.py",
        "def connect(): ...",
        "pool/__init__.py:1: def connect():",
    ),
    "a constant in __init__": (
        init_modules_only_reexport,
        "__init__.py",
        "limit = 3",
        "__init__.py:1: limit = 3",
    ),
    "long file": (
        files_are_short,
        "pool/ledger.py",
        "x = 1\n" * (MAX_LINES + 1),
        f"pool/ledger.py:{MAX_LINES + 1}: {MAX_LINES + 1} lines, at most {MAX_LINES}",
    ),
    "vague module": (
        names_say_something,
        "pool/_utils.py",
        "",
        "pool/_utils.py:1: _utils names no concept",
    ),
    "vague folder": (
        names_say_something,
        "pool/core/ring.py",
        "",
        "pool/core/ring.py:1: core names no concept",
    ),
}


def plant(directory: Path, tree: dict[str, str]) -> Path:
    package = directory / "toy"
    for name, source in tree.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return package


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_tidy_tree_passes(rule: Rule, tmp_path: Path) -> None:
    assert not rule(plant(tmp_path, TREE))


@pytest.mark.parametrize(("rule", "file", "source", "breach"), BREACHES.values(), ids=BREACHES)
def test_a_breach_is_found(
    rule: Rule, file: str, source: str, breach: str, tmp_path: Path
) -> None:
    assert rule(plant(tmp_path, {**TREE, file: source})) == [breach]


def test_every_rule_is_tested() -> None:
    assert {rule for rule, *_ in BREACHES.values()} == set(RULES)
