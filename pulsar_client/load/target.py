"""What a load test is aimed at: its URL, and whether one may aim at it.

This module opens no connection.
"""

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from pulsar_client.addresses import Address, check_address
from pulsar_client.exceptions import ConfigError

__all__ = ["Target"]

_SCHEMES = ("tcp", "tls", "unix", "udp")
# Where one may aim without being asked: this machine, link-local, RFC 1918 and RFC 4193.
_HOME = [
    ipaddress.ip_network(text)
    for text in (
        *("127.0.0.0/8", "0.0.0.0/32", "169.254.0.0/16"),
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
        *("::1/128", "::/128", "fe80::/10", "fc00::/7"),
    )
]
_FORMS = "tcp://HOST:PORT, tls://HOST:PORT, udp://HOST:PORT or unix:///PATH"


@dataclass(frozen=True)
class Target:
    """A URL taken apart.

    Attributes:
        url: as it was given.
        scheme: ``tcp``, ``tls``, ``unix`` or ``udp``.
        address: as :mod:`pulsar_client.addresses` has it.
    """

    url: str
    scheme: str
    address: Address

    @classmethod
    def parse(cls, url: str) -> "Target":
        """Read a URL: ``tcp://127.0.0.1:8060``, ``tls://…``, ``udp://…``, ``unix:///tmp/x``.

        Raises:
            ConfigError: it has another form.
        """
        if not isinstance(url, str):
            raise ConfigError(f"target is {url!r}, expected {_FORMS}")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as exc:
            raise ConfigError(f"target {url!r}: {exc}; expected {_FORMS}") from exc
        if parts.scheme in ("http", "https"):
            tcp = "tls" if parts.scheme == "https" else "tcp"
            raise ConfigError(
                f"target {url!r} must be {_FORMS}; for HTTP, {tcp}://HOST:PORT and --protocol http"
            )
        if parts.scheme not in _SCHEMES or parts.query or parts.fragment or parts.username:
            raise ConfigError(f"target {url!r} must be {_FORMS}")
        if parts.scheme == "unix":
            path = unquote(parts.netloc + parts.path)
            if not path:
                raise ConfigError(f"target {url!r} must have a path: unix:///tmp/socket")
            address: Address = f"unix:{path}"
        else:
            if not parts.hostname or not port or parts.path not in ("", "/"):
                raise ConfigError(f"target {url!r} must be {parts.scheme}://HOST:PORT")
            address = (parts.hostname, port)
        try:
            check_address(address)
        except (TypeError, ValueError) as exc:
            raise ConfigError(f"target {url!r}: {exc}") from exc
        return cls(url, parts.scheme, address)

    @property
    def host(self) -> str | None:
        """The host; None for a unix socket."""
        return None if isinstance(self.address, str) else self.address[0]

    def foreign_address(self) -> str | None:
        """Give an address of the target that is neither of this machine nor of a private network.

        Private are RFC 1918, RFC 4193 and link-local; others that are not routed, such as those
        for documentation and of carriers (RFC 6598), are foreign.

        The name is resolved, which may take time.  One that can't be resolved gives None: there
        is nothing to be harmed.
        """
        if isinstance(self.address, str):
            return None
        host, port = self.address[:2]
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            return None
        for *_, name in found:
            text = str(name[0])
            address = ipaddress.ip_address(text.partition("%")[0])
            if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
                address = address.ipv4_mapped
            if not any(address in network for network in _HOME):
                return text
        return None
