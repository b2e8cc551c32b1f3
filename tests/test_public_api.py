"""The public names: complete, importable, documented, and of the version of the CHANGELOG."""

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import pulsar_client
from pulsar_client import exceptions

ROOT = Path(__file__).resolve().parents[1]

PROMISED = {
    "AbstractClient",
    "AbstractUdpClient",
    "Connection",
    "DatagramProtocol",
    "DatagramServer",
    "EventHandler",
    "FlowControl",
    "Pool",
    "PoolConnection",
    "Producer",
    "Protocol",
    "ProtocolConsumer",
    "PulsarProtocol",
    "TcpServer",
    "Timeout",
    *exceptions.__all__,
}


def public_modules(package: ModuleType) -> list[str]:
    """Return the names of a package and its modules, those with a leading underscore left out."""
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    names = [package.__name__, *(module.name for module in found)]
    return [name for name in names if not re.search(r"\._", name)]


def public_names(module: ModuleType) -> list[str]:
    """Return what a module offers: its ``__all__``, or else the public names it defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def undocumented(name: str, value: object) -> Iterator[str]:
    """Yield the names, of a function or a class and its public members, without a docstring."""
    if isinstance(value, type | FunctionType) and not (value.__doc__ or "").strip():
        yield name
    if isinstance(value, type):
        for member_name, member in vars(value).items():
            if member_name.startswith("_"):
                continue
            if isinstance(member, property | functools.cached_property | FunctionType):
                documented = member.__doc__
            elif isinstance(member, staticmethod | classmethod):
                documented = member.__func__.__doc__
            else:
                continue
            if not (documented or "").strip():
                yield f"{name}.{member_name}"


def latest_version(changelog: str) -> str | None:
    """Return the version of the topmost heading that has one."""
    versions = re.findall(r"^## \[?(\d[^\]\s]*)", changelog, re.MULTILINE)
    return versions[0] if versions else None


# What some modules need, each an extra of its own.
OF_EXTRAS = {"opentelemetry", "prometheus_client"}


@pytest.fixture(params=public_modules(pulsar_client))
def module(request: pytest.FixtureRequest) -> ModuleType:
    try:
        return importlib.import_module(request.param)
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] in OF_EXTRAS:
            pytest.skip(f"needs {exc.name}")
        raise


def test_names_are_sorted_and_given_once() -> None:
    assert list(pulsar_client.__all__) == sorted(set(pulsar_client.__all__))


def test_what_is_promised_is_there() -> None:
    assert not PROMISED - set(pulsar_client.__all__)


def test_every_name_can_be_imported(module: ModuleType) -> None:
    assert [name for name in public_names(module) if not hasattr(module, name)] == []


def test_names_of_a_module_are_given_once(module: ModuleType) -> None:
    names = public_names(module)
    assert len(names) == len(set(names))


def test_everything_public_is_documented(module: ModuleType) -> None:
    assert module.__doc__, "the module has no docstring"
    values = {name: getattr(module, name, None) for name in public_names(module)}
    own = {
        name: value
        for name, value in values.items()
        if str(getattr(value, "__module__", "")).partition(".")[0] == pulsar_client.__name__
    }
    assert not [lost for name, value in own.items() for lost in undocumented(name, value)]


def test_the_changelog_knows_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    latest = latest_version(changelog)
    if latest is None:  # before the first release
        assert "\n## [Unreleased]\n" in changelog
    else:
        assert latest == pulsar_client.__version__


# -- the checks themselves -------------------------------------------------------------------


class Planted:
    """Has members with and without a docstring."""

    def told(self) -> None:
        """Do it."""

    def untold(self) -> None: ...

    def _private(self) -> None: ...

    @property
    def untold_property(self) -> int:
        return 1

    @functools.cached_property
    def untold_cached(self) -> int:
        return 1

    @classmethod
    def untold_class(cls) -> None: ...

    @staticmethod
    def untold_static() -> None:
        """ """

    async def untold_coroutine(self) -> None: ...


def planted() -> None: ...


def test_a_missing_docstring_is_found() -> None:
    assert list(undocumented("Planted", Planted)) == [
        "Planted.untold",
        "Planted.untold_property",
        "Planted.untold_cached",
        "Planted.untold_class",
        "Planted.untold_static",
        "Planted.untold_coroutine",
    ]
    assert list(undocumented("planted", planted)) == ["planted"]
    assert list(undocumented("Bare", type("Bare", (), {}))) == ["Bare"]
    assert not list(undocumented("constant", 3))


def test_modules_are_found_in_depth() -> None:
    names = public_modules(pulsar_client)
    assert {"pulsar_client", "pulsar_client.exceptions", "pulsar_client.protocols"} <= set(names)
    assert "pulsar_client.__main__" not in names
    assert inspect.ismodule(importlib.import_module(names[-1]))


@pytest.mark.parametrize(
    ("changelog", "version"),
    [
        ("# Changelog\n\n## [Unreleased]\n", None),
        ("## [Unreleased]\n\n## [1.2.0] - 2026-01-01\n\n## [1.1.0]\n", "1.2.0"),
        ("## 0.1.0 (2026-01-01)\n", "0.1.0"),
    ],
)
def test_the_topmost_version_counts(changelog: str, version: str | None) -> None:
    assert latest_version(changelog) == version
