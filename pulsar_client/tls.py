"""TLS contexts for servers and clients, with file errors that say what is wrong.

This module must not know of sockets, transports, loops or settings.  An interpreter without
``ssl`` can import it; only a call fails.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from pulsar_client.exceptions import ConfigError

try:
    import ssl
except ImportError:  # an interpreter that was built without OpenSSL
    ssl = None  # type: ignore[assignment]

__all__ = ["ReloadableContext", "client_context", "server_context"]

_logger = logging.getLogger("pulsar_client.tls")

_Path: TypeAlias = "str | os.PathLike[str]"

_CERTIFICATE = (b"-----BEGIN CERTIFICATE-----", b"-----BEGIN TRUSTED CERTIFICATE-----")
# RSA PRIVATE KEY, EC PRIVATE KEY, ENCRYPTED PRIVATE KEY and PRIVATE KEY end alike.
_KEY = (b"PRIVATE KEY-----",)


def server_context(
    cert_file: _Path,
    key_file: _Path | None = None,
    *,
    password: str | bytes | None = None,
    ca_file: _Path | None = None,
    minimum_version: ssl.TLSVersion | None = None,
    alpn: Sequence[str] = (),
) -> ssl.SSLContext:
    """Make the TLS context of a server.

    Args:
        cert_file: PEM file with the server's certificate and the chain behind it.
        key_file: PEM file with its private key; None if `cert_file` has it as well.
        password: of an encrypted key; nobody is asked at a terminal.
        ca_file: PEM file with authorities; with one, every client must show a certificate that
            one of them signed.
        minimum_version: oldest version allowed, TLS 1.2 (None) or later.
        alpn: protocols offered, the preferred one first, such as ``("h2", "http/1.1")``.

    Raises:
        ConfigError: a file is missing, can't be read or has other content, key and certificate
            don't match, the password is wrong, or this Python has no ``ssl``.  The message names
            the parameter and the file; an OSError is attached as the cause.
        TypeError, ValueError: another argument is not allowed.
    """
    _require_ssl()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _checked_version(minimum_version)
    _load_certificate(context, cert_file, key_file, password)
    if ca_file is not None:
        _load_authorities(context, ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    _set_alpn(context, alpn)
    return context


class ReloadableContext:
    """The TLS context of a server that can take another certificate while it serves.

    Args:
        cert_file, key_file, password: as for `server_context`.
        logger: gets a line when the files were read anew, and an error when they can't be used.
        **kw: the other arguments of `server_context`.

    Raises:
        ConfigError, TypeError, ValueError: as for `server_context`.
    """

    def __init__(
        self,
        cert_file: _Path,
        key_file: _Path | None = None,
        *,
        password: str | bytes | None = None,
        logger: logging.Logger | None = None,
        **kw: Any,
    ) -> None:
        self._files = (cert_file, key_file, password)
        self._logger = logger or _logger
        #: What servers are given; it stays the same object.
        self.context: ssl.SSLContext = server_context(cert_file, key_file, password=password, **kw)

    def reload(self) -> bool:
        """Read certificate and key anew, from the same files.

        The next handshake uses them; connections that are open go on as they are.  Authorities,
        versions and ALPN stay what they were.

        Returns:
            Whether they are used now.  If they can't be, because one of them is missing or they
            don't match, the error is logged and the old ones stay in use.
        """
        try:
            # A context that failed to load a pair has neither the old nor the new one: try it on
            # another first.
            _load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *self._files)
            _load_certificate(self.context, *self._files)
        except ConfigError as error:
            self._logger.error("the old certificate stays in use: %s", error)
            return False
        self._logger.info("cert_file %s was read anew", _name(self._files[0]))
        return True


def client_context(
    *,
    ca_file: _Path | None = None,
    cert_file: _Path | None = None,
    key_file: _Path | None = None,
    password: str | bytes | None = None,
    verify: bool = True,
    alpn: Sequence[str] = (),
) -> ssl.SSLContext:
    """Make the TLS context of a client; TLS 1.2 is the oldest version allowed.

    Args:
        ca_file: PEM file with the authorities that are trusted; None for those of the system.
        cert_file: PEM file with the client's own certificate, if the server wants one.
        key_file: PEM file with its private key; None if `cert_file` has it as well.
        password: of an encrypted key; nobody is asked at a terminal.
        verify: whether the server's certificate and its host name are checked.  Without that
            anybody on the way can read and change everything, and `ca_file` is not used.
        alpn: protocols offered, the preferred one first, such as ``("h2", "http/1.1")``.

    Raises:
        ConfigError: as for `server_context`; also a key without a certificate.
        TypeError, ValueError: another argument is not allowed.
    """
    _require_ssl()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file is not None:
        _load_authorities(context, ca_file)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if cert_file is not None:
        _load_certificate(context, cert_file, key_file, password)
    elif key_file is not None:
        raise ConfigError(f"key_file {_name(key_file)} needs a cert_file, which is None")
    _set_alpn(context, alpn)
    return context


def _require_ssl() -> None:
    if ssl is None:
        raise ConfigError("TLS needs the ssl module, which this Python was built without")


def _checked_version(version: ssl.TLSVersion | None) -> ssl.TLSVersion:
    oldest = ssl.TLSVersion.TLSv1_2
    if version is None:
        return oldest
    if not isinstance(version, ssl.TLSVersion):
        raise TypeError(f"minimum_version must be an ssl.TLSVersion, not {version!r}")
    # MINIMUM_SUPPORTED and MAXIMUM_SUPPORTED are negative.
    if version < oldest and version != ssl.TLSVersion.MAXIMUM_SUPPORTED:
        raise ValueError(f"minimum_version must be TLSv1_2 or later, not {version.name}")
    return version


def _load_certificate(
    context: ssl.SSLContext,
    cert_file: _Path,
    key_file: _Path | None,
    password: str | bytes | None,
) -> None:
    # OpenSSL names neither the file nor what is wrong with it: look before it does.
    _check_pem("cert_file", cert_file, _CERTIFICATE, "a PEM certificate")
    if key_file is None:
        key_name = f"cert_file {_name(cert_file)}"
        _check_pem("cert_file", cert_file, _KEY, "a PEM private key (key_file is None)")
    else:
        key_name = f"key_file {_name(key_file)}"
        _check_pem("key_file", key_file, _KEY, "a PEM private key")
    try:
        context.load_cert_chain(cert_file, key_file, _password_source(key_name, password))
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        if "MISMATCH" in reason:
            text = f"{key_name} does not match the certificate in cert_file {_name(cert_file)}"
        elif password is not None:
            text = f"{key_name} can't be read with the password given ({reason})"
        else:
            text = f"cert_file {_name(cert_file)} or {key_name} is damaged ({reason})"
        raise ConfigError(text) from error


def _password_source(key_name: str, password: str | bytes | None) -> Callable[[], str | bytes]:
    def give() -> str | bytes:
        if password is None:
            raise ConfigError(f"{key_name} is encrypted: it needs a password, which is None")
        return password

    # A function even without a password: OpenSSL would ask for it at the terminal.
    return give


def _load_authorities(context: ssl.SSLContext, ca_file: _Path) -> None:
    _check_pem("ca_file", ca_file, _CERTIFICATE, "PEM certificates")
    try:
        context.load_verify_locations(ca_file)
    except ssl.SSLError as error:
        raise ConfigError(
            f"ca_file {_name(ca_file)} is damaged ({error.reason or error})"
        ) from error


def _check_pem(parameter: str, path: _Path, markers: tuple[bytes, ...], wanted: str) -> None:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{parameter} must be the path of a file, not {path!r}")
    try:
        with open(path, "rb") as file:
            content = file.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise ConfigError(
            f"{parameter} {_name(path)} can't be read ({reason}): it must be a file with {wanted}"
        ) from error
    if not any(marker in content for marker in markers):
        raise ConfigError(f"{parameter} {_name(path)} must be a file with {wanted}; it has none")


def _set_alpn(context: ssl.SSLContext, alpn: Sequence[str]) -> None:
    if isinstance(alpn, (str, bytes)):
        raise TypeError(f"alpn must be a sequence of protocol names, not {alpn!r}")
    for name in alpn:
        if not isinstance(name, str):
            raise TypeError(f"alpn must have str names, not {name!r}")
        if not name.isascii() or not 1 <= len(name) <= 255:
            raise ValueError(f"alpn: a protocol name has 1 to 255 ASCII characters, not {name!r}")
    if alpn:
        context.set_alpn_protocols(list(alpn))


def _name(path: _Path) -> str:
    return repr(os.fspath(path))
