"""TLS of a server: who may connect, what is negotiated, and new certificates while it serves."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

from pulsar_client import ConfigError, Connection, ProtocolConsumer, TcpServer
from pulsar_client.tls import ReloadableContext, client_context, server_context

NAME = "server.example"


class Echo(ProtocolConsumer):
    def data_received(self, data: bytes) -> None:
        self.write(data)
        self.finished()


class Files:
    """The files of a server's certificate, which can be renewed."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.cert = directory / "cert.pem"
        self.key = directory / "key.pem"
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(self.authority.cert_pem.bytes())
        self.client = directory / "client.pem"
        self.client.write_bytes(
            self.authority.issue_cert("client").private_key_and_cert_chain_pem.bytes()
        )
        self.renew()

    def renew(self, *, certificate: bool = True, key: bool = True) -> None:
        issued = self.authority.issue_cert(NAME)
        if certificate:
            self.cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        if key:
            self.key.write_bytes(issued.private_key_pem.bytes())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@contextlib.asynccontextmanager
async def served(context: ssl.SSLContext) -> AsyncIterator[Any]:
    server = TcpServer(partial(Connection, Echo), address=("127.0.0.1", 0))
    await server.start_serving(sslcontext=context)
    try:
        yield server.address
    finally:
        await server.close(grace=1.0)


class Client:
    """A TLS client of the standard library."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.ssl: Any = writer.get_extra_info("ssl_object")

    async def ask(self) -> None:
        self.writer.write(b"hello")
        assert await self.reader.readexactly(5) == b"hello"

    @property
    def serial(self) -> Any:
        """What tells the server's certificate from others."""
        return self.ssl.getpeercert()["serialNumber"]


@contextlib.asynccontextmanager
async def dialled(address: Any, context: ssl.SSLContext) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(*address, ssl=context, server_hostname=NAME)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_client_certificates(files: Files) -> None:
    """P26: with ``ca_file`` a client without a certificate gets no answer."""
    server = server_context(files.cert, files.key, ca_file=files.ca)
    async with served(server) as address:
        good = client_context(ca_file=files.ca, cert_file=files.client)
        async with dialled(address, good) as client:
            await client.ask()
        with pytest.raises(OSError):  # noqa: PT011,PT012 - as the loop says it
            async with dialled(address, client_context(ca_file=files.ca)) as client:
                client.writer.write(b"hello")
                if not await client.reader.read(5):
                    raise ConnectionError


async def test_an_old_version_gets_no_connection(files: Files) -> None:
    """P26: 1.2 at least, and what is asked for beyond that."""
    server = server_context(files.cert, files.key, minimum_version=ssl.TLSVersion.TLSv1_3)
    async with served(server) as address:
        old = client_context(ca_file=files.ca)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(OSError):  # noqa: PT011
            async with dialled(address, old):
                raise AssertionError
        async with dialled(address, client_context(ca_file=files.ca)) as client:
            await client.ask()
            assert client.ssl.version() == "TLSv1.3"
    assert server_context(files.cert, files.key).minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("version", "error", "text"),
    [
        (ssl.TLSVersion.TLSv1_1, ValueError, "TLSv1_1"),
        (ssl.TLSVersion.MINIMUM_SUPPORTED, ValueError, "MINIMUM_SUPPORTED"),
        ("1.2", TypeError, "'1.2'"),
    ],
)
def test_a_minimum_that_is_too_old(files: Files, version: Any, error: Any, text: str) -> None:
    """P26."""
    with pytest.raises(error, match=text):
        server_context(files.cert, files.key, minimum_version=version)


async def test_alpn(files: Files) -> None:
    """P26: the server's preference counts."""
    async with served(server_context(files.cert, files.key, alpn=("b", "a"))) as address:
        both = client_context(ca_file=files.ca, alpn=("a", "b"))
        async with dialled(address, both) as client:
            assert client.ssl.selected_alpn_protocol() == "b"
        none = client_context(ca_file=files.ca, alpn=("c",))
        async with dialled(address, none) as client:
            assert client.ssl.selected_alpn_protocol() is None
            await client.ask()


async def test_a_new_certificate(files: Files) -> None:
    """P27: the next handshake uses it, open connections go on."""
    tls = ReloadableContext(files.cert, files.key)
    context = client_context(ca_file=files.ca)
    async with served(tls.context) as address, dialled(address, context) as before:
        await before.ask()
        files.renew()
        async with dialled(address, context) as between:
            assert between.serial == before.serial  # nobody has asked for it yet
        assert tls.reload() is True
        async with dialled(address, context) as after:
            assert after.serial != before.serial
            await after.ask()
        await before.ask()


@pytest.mark.parametrize("damage", ["mismatch", "missing", "garbage"])
async def test_a_bad_certificate(
    files: Files, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """P27: the old pair stays in use, and that is logged."""
    tls = ReloadableContext(files.cert, files.key)
    context = client_context(ca_file=files.ca)
    async with served(tls.context) as address:
        async with dialled(address, context) as client:
            before = client.serial
        if damage == "mismatch":
            files.renew(key=False)  # caught in the middle of a renewal
        elif damage == "missing":
            files.renew()
            files.key.unlink()
        else:
            files.cert.write_bytes(b"garbage")
        assert tls.reload() is False
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert "stays in use" in caplog.text
        async with dialled(address, context) as client:
            assert client.serial == before
            await client.ask()
        files.renew()
        assert tls.reload() is True
        async with dialled(address, context) as client:
            assert client.serial != before
            await client.ask()


def test_a_reloadable_context_takes_what_a_context_takes(files: Files, tmp_path: Path) -> None:
    """P26, P27."""
    tls = ReloadableContext(
        files.cert, files.key, ca_file=files.ca, minimum_version=ssl.TLSVersion.TLSv1_3
    )
    assert tls.context.verify_mode == ssl.CERT_REQUIRED
    assert tls.context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert tls.reload()
    assert tls.context.verify_mode == ssl.CERT_REQUIRED
    with pytest.raises(ConfigError, match="key_file"):
        ReloadableContext(files.cert, tmp_path / "none")
    with pytest.raises(TypeError, match="nonsense"):
        ReloadableContext(files.cert, files.key, nonsense=1)
