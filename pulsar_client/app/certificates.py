"""The TLS files of a server, as they were when they were last found to be good.

The arbiter keeps what it read and hands it to every worker: one that starts later must not come
upon a file that has changed since, or that it may not read any more.
"""

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from pulsar_client.app.settings import Settings
from pulsar_client.exceptions import ConfigError
from pulsar_client.tls import server_context

__all__ = ["Certificates", "check_completeness"]


@dataclass(frozen=True, repr=False)
class Certificates:
    """The content of the files; it has the private key in it and is never printed."""

    cert: bytes
    key: bytes
    ca: bytes | None

    @classmethod
    def read(cls, settings: Settings) -> "Certificates | None":
        """Read the files of the settings and see that they are of use.

        Returns:
            None if the settings have no TLS.

        Raises:
            ConfigError: one of certificate and key is missing, or a file is wrong; the message
                names it.
        """
        check_completeness(settings)
        cert_file, key_file, ca_file = settings.cert_file, settings.key_file, settings.ca_file
        if cert_file is None or key_file is None:
            return None
        server_context(cert_file, key_file, ca_file=ca_file)  # its errors name the file
        ca = None if ca_file is None else _content(ca_file)
        return cls(_content(cert_file), _content(key_file), ca)

    def context(self, settings: Settings) -> ssl.SSLContext:
        """Make a context."""
        with _path(self.cert) as cert, _path(self.key) as key, _path(self.ca or b"") as ca:
            return server_context(
                cert,
                key,
                ca_file=ca if self.ca else None,
                minimum_version=_version(settings),
                alpn=settings.alpn,
            )

    def renew(self, context: ssl.SSLContext) -> None:
        """Let the handshakes that begin from now on use this certificate."""
        with _path(self.cert) as cert, _path(self.key) as key:
            context.load_cert_chain(cert, key)


def check_completeness(settings: Settings) -> None:
    """See that the settings name all files that TLS needs, or none; no file is read.

    Raises:
        ConfigError: one is missing.
    """
    cert_file, key_file, ca_file = settings.cert_file, settings.key_file, settings.ca_file
    if cert_file is None and key_file is None:
        if ca_file is not None:
            raise ConfigError(f"ca_file is {ca_file!r}, which needs cert_file and key_file")
    elif cert_file is None:
        raise ConfigError(f"key_file is {key_file!r} and cert_file none: TLS needs both")
    elif key_file is None:
        raise ConfigError(f"cert_file is {cert_file!r} and key_file none: TLS needs both")


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _version(settings: Settings) -> ssl.TLSVersion:
    return {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[settings.tls_minimum]


@contextlib.contextmanager
def _path(content: bytes) -> Iterator[str]:
    """Give OpenSSL, which takes paths only, a file without a name on any disk."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("pulsar-pem"), "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
        return
    with tempfile.NamedTemporaryFile() as named:  # mode 0600
        named.write(content)
        named.flush()
        yield named.name
