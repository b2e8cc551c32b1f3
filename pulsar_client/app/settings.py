"""The settings of an application: what there is, what each means, which values it takes.

The fields of `Settings` are the registry: the command line, the environment, the config file and
the reference in the documentation are made from them.  Where values come from is in
``configuration``.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from pulsar_client.app.setting_kinds import (
    Address,
    Addresses,
    Choice,
    Kind,
    Mode,
    Names,
    Optional,
    Seconds,
    Text,
    Whole,
)

__all__ = ["GROUPS", "Setting", "Settings", "registry"]

T = TypeVar("T")

GROUPS = ("sockets", "workers", "limits", "TLS", "process", "watching")

_PATH = Text("PATH", "a path")


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: in config files and in code.
        group: one of `GROUPS`.
        kind: which values it takes.
        help: one sentence or two.
        short: a flag of one letter, such as ``-b``; empty for none.
        default: what it is when nobody sets it.
        default_text: how the help calls the default; empty for the value itself.
        live: a reload takes a new value over; otherwise only a restart does.
        datagram: it has a meaning for a UDP server.
    """

    name: str
    group: str
    kind: Kind
    help: str
    short: str
    default: Any
    default_text: str
    live: bool
    datagram: bool

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return "PULSAR_" + self.name.upper()


def _cpus() -> int:
    # The CPUs this process may use: a container often has fewer than the machine.
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _setting(
    default: T,
    group: str,
    kind: Kind,
    text: str,
    *,
    short: str = "",
    default_text: str = "",
    live: bool = True,
    datagram: bool = True,
) -> T:
    about = (group, kind, text, short, default, default_text, live, datagram)
    value: T = field(default=default, metadata={"setting": about})
    return value


@dataclass(frozen=True)
class Settings:
    """The value of every setting; `registry` describes them."""

    bind: tuple[str, ...] = _setting(
        ("127.0.0.1:8060",),
        "sockets",
        Addresses(),
        "Where to listen: HOST:PORT, :PORT (every interface, IPv4 and IPv6), [::1]:PORT or "
        "unix:PATH; port 0 is any free port, the same for both families. Several are separated "
        "by commas.",
        short="-b",
    )
    backlog: int = _setting(
        2048, "sockets", Whole(1), "Connections that may wait to be accepted.", datagram=False
    )
    unix_mode: int | None = _setting(
        None,
        "sockets",
        Optional(Mode()),
        "Permissions of the files of unix sockets, such as 0660.",
        datagram=False,
        default_text="what the umask leaves",
    )
    unix_owner: str | None = _setting(
        None,
        "sockets",
        Optional(Text("USER[:GROUP]", "USER, USER:GROUP or :GROUP")),
        "Owner of the files of unix sockets.",
        datagram=False,
    )
    concurrency: str = _setting(
        "process",
        "workers",
        Choice(("process", "thread")),
        "process: an arbiter and worker processes on shared sockets; thread: one process that "
        "serves by itself.",
        live=False,
    )
    workers: int = _setting(
        _cpus(),
        "workers",
        Whole(1, 1000),
        "How many worker processes serve.",
        short="-w",
        default_text="the number of CPUs",
    )
    max_requests: int = _setting(
        0,
        "workers",
        Whole(0),
        "Replace a worker after about so many requests (up to a tenth more, at random), its "
        "successor being ready first; 0 is never.",
    )
    timeout: float = _setting(
        30.0,
        "workers",
        Seconds(),
        "A worker whose event loop is stuck for longer is killed and replaced; 0 is never.",
    )
    graceful_timeout: float = _setting(
        30.0,
        "workers",
        Seconds(),
        "How long requests in flight may take on a stop or a reload before they are cut.",
    )
    loop: str = _setting(
        "auto",
        "workers",
        Choice(("auto", "asyncio", "uvloop")),
        "The event loop; auto is uvloop where it is installed.",
    )
    max_connections: int = _setting(
        0,
        "limits",
        Whole(0),
        "Connections of one worker: further clients wait in the backlog, or for another worker; 0 "
        "is no limit. With several addresses each has its share.",
        datagram=False,
    )
    keep_alive: float = _setting(
        0.0,
        "limits",
        Seconds(),
        "Close a connection that has been idle for so long; 0 is never.",
        datagram=False,
    )
    handshake_timeout: float = _setting(
        10.0,
        "limits",
        Seconds(0.001),
        "How long a client may take for its TLS handshake.",
        datagram=False,
    )
    first_byte_timeout: float = _setting(
        30.0,
        "limits",
        Seconds(),
        "Close a new connection that has sent nothing for so long; 0 is never.",
        datagram=False,
    )
    message_timeout: float = _setting(
        60.0,
        "limits",
        Seconds(),
        "Close a connection whose request is not complete so long after its first byte; 0 is "
        "never.",
        datagram=False,
    )
    write_timeout: float = _setting(
        30.0,
        "limits",
        Seconds(),
        "Cut a client that takes nothing of its replies for so long; 0 is never.",
        datagram=False,
    )
    max_message: int = _setting(
        2**25,
        "limits",
        Whole(0, 2**40),
        "Bytes of a request until it is complete; more is a protocol error. 0 is no limit here; "
        "the protocol may have a lower one.",
        datagram=False,
    )
    cert_file: str | None = _setting(
        None,
        "TLS",
        Optional(_PATH),
        "PEM file with the server's certificate and its chain; needs key_file.",
        datagram=False,
    )
    key_file: str | None = _setting(
        None,
        "TLS",
        Optional(_PATH),
        "PEM file with the private key; needs cert_file.",
        datagram=False,
    )
    ca_file: str | None = _setting(
        None,
        "TLS",
        Optional(_PATH),
        "PEM file with authorities; with it every client must show a certificate that one of "
        "them signed.",
        datagram=False,
    )
    tls_minimum: str = _setting(
        "1.2", "TLS", Choice(("1.2", "1.3")), "The oldest version of TLS.", datagram=False
    )
    alpn: tuple[str, ...] = _setting(
        (),
        "TLS",
        Names(),
        "Protocols to offer, the preferred one first, such as h2,http/1.1.",
        default_text="none",
        datagram=False,
    )
    config: str | None = _setting(
        None,
        "process",
        Optional(_PATH),
        "TOML file, or Python file (.py), with settings by the names they have here.",
        short="-c",
        live=False,
    )
    log_level: str = _setting(
        "info",
        "process",
        Choice(("debug", "info", "warning", "error", "critical")),
        "What is logged.",
    )
    log_file: str | None = _setting(
        None,
        "process",
        Optional(_PATH),
        "Log to this file; the signal USR1 opens it anew.",
        default_text="standard error",
        live=False,
    )
    pidfile: str | None = _setting(
        None,
        "process",
        Optional(_PATH),
        "Write the process id of the arbiter to this file.",
        live=False,
    )
    user: str | None = _setting(
        None,
        "process",
        Optional(Text("USER", "the name or id of a user")),
        "Workers run as this user; the arbiter must be root.",
        live=False,
    )
    group: str | None = _setting(
        None,
        "process",
        Optional(Text("GROUP", "the name or id of a group")),
        "Workers run in this group only.",
        default_text="the groups of the user",
        live=False,
    )
    umask: int | None = _setting(
        None,
        "process",
        Optional(Mode()),
        "Permissions that files made by the server do not get, such as 0027.",
        default_text="as inherited",
        live=False,
    )
    status_socket: str | None = _setting(
        "auto",
        "watching",
        Optional(_PATH),
        "Unix socket that shows how the server is to `python -m pulsar_client status`; auto is "
        "one by process id in the user's run-time directory.",
        live=False,
    )
    prometheus_bind: str | None = _setting(
        None,
        "watching",
        Optional(Address()),
        "HOST:PORT of a page /metrics for Prometheus, with /livez and /readyz for probes.",
        live=False,
    )

    def after(self, old: "Settings") -> tuple["Settings", list[str]]:
        """Give these settings as far as a reload takes them over.

        Args:
            old: those that it replaces.

        Returns:
            The settings, and the names of those that have changed and need a restart.
        """
        fixed = [
            setting.name
            for setting in registry()
            if not setting.live and getattr(old, setting.name) != getattr(self, setting.name)
        ]
        return replace(self, **{name: getattr(old, name) for name in fixed}), fixed


def registry() -> Iterator[Setting]:
    """Yield every setting, in the order of the help."""
    for found in fields(Settings):
        about = found.metadata["setting"]
        yield Setting(found.name, *about)
