"""Where the values of settings come from: code, a file, the environment, the command line.

They rank in this order, the last one wins, and it is remembered where each value came from.  What
the settings are is in ``settings``.
"""

import argparse
import difflib
import os
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pulsar_client.app.settings import GROUPS, Setting, Settings, registry
from pulsar_client.exceptions import ConfigError

__all__ = ["Configuration", "load", "read_params"]

_PREFIX = "PULSAR_"
# Of the library's own test suite, not of an application.
_OTHERS_PREFIX = "PULSAR_CLIENT_"

_Values = dict[str, tuple[Any, str]]


@dataclass(frozen=True)
class Configuration:
    """Settings, and where each of them came from.

    Attributes:
        settings: the values.
        origins: for each name ``default``, ``code``, the file, the variable or the flag.
        check: only a look at the settings was asked for.
    """

    settings: Settings
    origins: Mapping[str, str]
    check: bool = False

    def __str__(self) -> str:
        """Give one line for each setting: its value, and where that came from."""
        rows = [
            (f"{known.name} = {known.kind.show(getattr(self.settings, known.name))}", known.name)
            for known in registry()
        ]
        width = max(len(text) for text, _ in rows)
        return "\n".join(f"{text:<{width}}  # {self.origins[name]}" for text, name in rows)


def read_params(params: Mapping[str, Any], refused: Iterable[str] = ()) -> _Values:
    """Read what code gives as defaults.

    Raises:
        ConfigError: an unknown name, or a value that is not allowed.
    """
    known = _known(refused)
    return {
        name: (_read(_find(name, known, "the parameters"), value, name), "code")
        for name, value in params.items()
    }


def load(
    params: Mapping[str, Any],
    *,
    arguments: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    prog: str | None = None,
    description: str | None = None,
    refused: Iterable[str] = (),
) -> Configuration:
    """Merge all sources.

    Args:
        params: what code gives; ranks above the defaults only.
        arguments: the command line without the program; None for none, and no ``--help``.
        environ: the environment; None for none.
        prog: what the help calls the program.
        description: what the help says of it.
        refused: names of settings that this kind of server does not have.

    Raises:
        ConfigError: an unknown name or a bad value; the message names the source, the setting,
            the value and what is allowed.
        SystemExit: ``--help`` was asked for, or the command line has an unknown flag.
    """
    known = _known(refused)
    values: _Values = {
        name: (setting.default, "default") for name, setting in known.items()
    } | read_params(params, refused)
    from_variables = _from_environment(environ or {}, known)
    from_flags: _Values = {}
    check = False
    if arguments is not None:
        from_flags, check = _from_command_line(arguments, known, prog, description)
    config, origin = (values | from_variables | from_flags).get("config", (None, ""))
    if config is not None:
        values |= _from_file(config, known, origin)
    values |= from_variables
    values |= from_flags
    settings = Settings(**{name: value for name, (value, _) in values.items()})
    origins = {known.name: "not for this kind of server" for known in registry()}
    origins |= {name: origin for name, (_, origin) in values.items()}
    return Configuration(settings, origins, check)


def _known(refused: Iterable[str]) -> dict[str, Setting]:
    without = set(refused)
    return {setting.name: setting for setting in registry() if setting.name not in without}


def _find(name: str, known: Mapping[str, Setting], source: str) -> Setting:
    if name in known:
        return known[name]
    if any(setting.name == name for setting in registry()):
        raise ConfigError(f"{source}: {name} has no meaning for this kind of server")
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, 1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
    raise ConfigError(f"{source}: unknown setting {name!r}; {hint}")


def _read(setting: Setting, value: object, called: str) -> Any:
    try:
        return setting.kind.read(value)
    except (ValueError, TypeError) as error:
        detail = str(error)
        # What float() and int() say of text is said better by what is expected.
        if "could not convert" in detail or not detail:
            detail = ""
        text = f"{called} is {value!r}, expected {setting.kind.expected}"
        raise ConfigError(f"{text} ({detail})" if detail else text) from None


def _from_environment(environ: Mapping[str, str], known: Mapping[str, Setting]) -> _Values:
    found: _Values = {}
    for variable, text in environ.items():
        if not variable.startswith(_PREFIX) or variable.startswith(_OTHERS_PREFIX):
            continue
        name = variable.removeprefix(_PREFIX).lower()
        setting = _find(name, known, f"environment variable {variable}")
        found[name] = (_read(setting, text, variable), f"environment variable {variable}")
    return found


def _from_file(path: str, known: Mapping[str, Setting], origin: str) -> _Values:
    found: _Values = {}
    for name, value in _file_content(path, origin).items():
        setting = _find(name, known, path)
        if name == "config":
            raise ConfigError(f"{path}: config can't be set in a config file")
        found[name] = (_read(setting, value, f"{path}: {name}"), path)
    return found


def _file_content(path: str, origin: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ConfigError(
            f"config is {path!r} ({origin}), which can't be read: {error.strerror}"
        ) from error
    try:
        if not path.endswith(".py"):
            return tomllib.loads(content.decode())
        namespace: dict[str, Any] = {"__name__": "__config__", "__file__": os.path.abspath(path)}
        exec(compile(content, path, "exec"), namespace)
    except Exception as error:
        raise ConfigError(
            f"config file {path} can't be read: {type(error).__name__}: {error}"
        ) from error
    return {
        name: value
        for name, value in namespace.items()
        # What the file imports and defines for itself is no setting.
        if not name.startswith("_") and not callable(value)
        if not isinstance(value, types.ModuleType)
    }


# -- the command line ------------------------------------------------------------------------


def _from_command_line(
    arguments: Sequence[str],
    known: Mapping[str, Setting],
    prog: str | None,
    description: str | None,
) -> tuple[_Values, bool]:
    for argument in arguments:
        if argument.startswith("--"):
            name = argument.removeprefix("--").partition("=")[0].replace("-", "_")
            if name not in known and any(setting.name == name for setting in registry()):
                _find(name, known, f"command line {argument}")
    parser = _parser(known, prog, description)
    given = vars(parser.parse_args(arguments))
    check = bool(given.pop("check_config", False))
    return {
        name: (_read(known[name], text, known[name].flag), f"command line {known[name].flag}")
        for name, text in given.items()
    }, check


def _parser(
    known: Mapping[str, Setting], prog: str | None, description: str | None
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog="Every setting can also be an environment variable, such as PULSAR_BIND or "
        "PULSAR_KEEP_ALIVE, or a line of the config file, such as keep_alive = 15. What comes "
        "later wins: defaults, file, environment, command line. Signals: TERM and INT stop "
        "gracefully, a second one and QUIT at once; HUP reloads settings, certificates and "
        "code; TTIN and TTOU add and remove a worker; USR1 opens the log file anew.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for title in GROUPS:
        group = parser.add_argument_group(title)
        for setting in known.values():
            if setting.group != title:
                continue
            flags = [setting.short, setting.flag] if setting.short else [setting.flag]
            default = setting.default_text or setting.kind.show(setting.default)
            group.add_argument(
                *flags,
                dest=setting.name,
                metavar=setting.kind.metavar,
                help=f"{setting.help} ({default})".replace("%", "%%"),
            )
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="Print every setting, its value and where that comes from, and exit.",
    )
    return parser
