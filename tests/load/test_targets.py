"""Targets: what a URL means, who may be aimed at, and every scheme at a real server."""

import socket
import ssl
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from load_kit import echo_target, plan

from examples.echo import EchoServerProtocol
from examples.echo.manage import server
from pulsar_client import ConfigError, DatagramProtocol, DatagramServer, ProtocolConsumer, load
from pulsar_client.load.recorder import Interval, Totals
from pulsar_client.load.target import Target

pytest.importorskip("hdrh", reason="hdrhistogram is not installed")


@pytest.mark.parametrize(
    ("url", "scheme", "address"),
    [
        ("tcp://127.0.0.1:8060", "tcp", ("127.0.0.1", 8060)),
        ("tls://localhost:8443/", "tls", ("localhost", 8443)),
        ("udp://[::1]:53", "udp", ("::1", 53)),
        ("unix:///tmp/a%20b", "unix", "unix:/tmp/a b"),
        ("unix:/tmp/x", "unix", "unix:/tmp/x"),
    ],
)
def test_urls(url: str, scheme: str, address: object) -> None:
    target = Target.parse(url)
    assert (target.scheme, target.address, target.url) == (scheme, address, url)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:80", "tcp://x", "tcp://x:0", "tcp://x:99999", "tcp://x:1/path", "unix:",
     "tcp://u@x:1", "http://x:1", "tcp://x:1?y", "tcp://[::1:1"],
)  # fmt: skip
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match="target"):
        Target.parse(url)


@pytest.mark.parametrize(
    ("host", "foreign"),
    [
        *((host, False) for host in ("127.0.0.1", "10.1.2.3", "192.168.0.9", "172.16.0.1")),
        *((host, False) for host in ("::1", "fe80::1", "fd00::1", "::ffff:10.0.0.1", "0.0.0.0")),
        *((host, True) for host in ("8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8")),
        *((host, False) for host in ("169.254.1.1", "172.31.255.255", "127.9.9.9", "fdff::1")),
        # Not routed, and yet not ours: documentation, carriers, benchmarks, reserved, multicast.
        *((host, True) for host in ("192.0.2.1", "198.51.100.7", "100.64.0.1", "198.18.0.1")),
        *((host, True) for host in ("240.0.0.1", "239.1.2.3", "2001:db8::1", "ff02::1")),
        *((host, True) for host in ("172.32.0.1", "255.255.255.255", "::ffff:192.0.2.1")),
    ],
)
def test_l18_foreign_is_what_is_neither_of_this_machine_nor_private(
    host: str, foreign: bool
) -> None:
    url = f"tcp://[{host}]:80" if ":" in host else f"tcp://{host}:80"
    assert (Target.parse(url).foreign_address() is not None) is foreign
    options = {"target": url, "protocol": "echo", "rate": 1.0}
    if foreign:
        with pytest.raises(ConfigError, match="--i-own-this-target"):
            load.Plan(**options)  # type: ignore[arg-type]
    load.Plan(**options, own_target=True)  # type: ignore[arg-type]


async def test_over_tls(ca: trustme.CA, server_ssl: ssl.SSLContext, tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(authority))
    serving = server()
    await serving.start_serving(sslcontext=server_ssl)
    try:
        url = f"tls://localhost:{serving.address[1]}"
        result = await load.run(plan(url, rate=100, ca_file=str(authority)))
        assert result.counts.ok == 50
        result = await load.run(plan(url, rate=100, insecure=True))
        assert result.counts.ok == 50
        said = f"^{url} can't be reached: certificate refused: .*certificate verify failed"
        with pytest.raises(load.TargetUnreachable, match=said):
            await load.run(plan(url, rate=100))
    finally:
        await serving.close()


async def test_over_a_unix_socket(tmp_path: Path) -> None:
    path = f"unix:{tmp_path}/echo"
    async with server(path):
        result = await load.run(plan(path, rate=100))
    assert result.counts.ok == 50


class Answer(ProtocolConsumer):
    """Sends a datagram back, without those that begin with 'lose'."""

    def data_received(self, data: bytes) -> None:
        self.write(data)
        self.finished()


class Ask(ProtocolConsumer):
    """Sends its message as a datagram."""

    def start_request(self) -> None:
        self.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.finished(data)


async def test_over_udp() -> None:
    serving = DatagramServer(
        partial(DatagramProtocol, consumer_factory=Answer), address=("127.0.0.1", 0)
    )
    await serving.create_endpoint()
    try:
        host, port = serving.addresses[0][:2]
        result = await load.run(plan(f"udp://{host}:{port}", rate=100, protocol=f"{__name__}:Ask"))
    finally:
        await serving.close()
    assert result.counts.ok == 50
    assert result.histogram("connect").count == 4


async def test_over_udp_nobody_is_there() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        nobody.connect(nobody.getsockname())  # the port is taken, and refuses what others send
        result = await load.run(
            plan(f"udp://127.0.0.1:{port}", rate=50, protocol=f"{__name__}:Ask")
        )
    assert result.counts.ok == 0
    assert result.counts.balanced
    assert set(result.causes) == {"ConnectionRefusedError"}


async def test_churn_by_requests_and_by_age() -> None:
    async with echo_target() as url:
        calm = await load.run(plan(url, rate=100, connections=1))
        assert calm.histogram("connect").count == 1
        churned = await load.run(plan(url, rate=100, connections=1, requests_per_connection=5))
        assert churned.counts.ok == 50
        assert 10 <= churned.histogram("connect").count <= 12
        stop = load.Stop()

        def watch(interval: Interval, totals: Totals) -> None:
            if totals.durations.get("connect", Counter()).total() >= 3:
                stop.request()

        ageing = plan(url, rate=100, connections=1, connection_age=0.1, duration=50, interval=0.1)
        aged = await load.run(ageing, watch=watch, stop=stop)
        assert aged.counts.error == aged.counts.timeout == 0
        # One grows old after at least 0.09 s; the run began up to 0.1 s behind the first dial.
        assert 3 <= aged.histogram("connect").count <= (aged.elapsed + 0.1) / 0.09 + 2


async def test_the_size_of_messages() -> None:
    seen = []

    class Measure(EchoServerProtocol):
        def write(self, data: Any) -> Any:
            seen.append(len(data) - 4)
            return super().write(data)

    from pulsar_client import Connection, TcpServer

    async with TcpServer(partial(Connection, Measure), address=("127.0.0.1", 0)) as serving:
        url = f"tcp://127.0.0.1:{serving.address[1]}"
        for size in (1, 15, 16, 5000):
            await load.run(plan(url, rate=100, duration=0.05, size=size))
    assert seen == [1] * 5 + [15] * 5 + [16] * 5 + [5000] * 5


async def test_a_wrong_reply_is_an_error() -> None:
    class Liar(EchoServerProtocol):
        def write(self, data: Any) -> Any:
            return super().write(bytes(data).replace(b"0003.", b"0004."))

    from pulsar_client import Connection, TcpServer

    async with TcpServer(partial(Connection, Liar), address=("127.0.0.1", 0)) as serving:
        url = f"tcp://127.0.0.1:{serving.address[1]}"
        result = await load.run(plan(url, rate=100))
    assert (result.counts.ok, result.counts.error) == (49, 1)
    assert result.causes == {"WrongReply": 1}
    assert "got b'0000000000000004." in result.samples["WrongReply"]
