"""The numbers of a run while it goes on, for Prometheus: ``GET /metrics``."""

from functools import partial
from typing import Any

from pulsar_client.addresses import parse_address
from pulsar_client.load.histogram import quantiles
from pulsar_client.load.recorder import METRICS, OTHER_METRICS, Totals
from pulsar_client.protocols import Connection, DelimitedDecoder, ProtocolConsumer
from pulsar_client.servers import TcpServer

__all__ = ["metrics_server", "prometheus_text"]

_QUANTILES = (0.5, 0.9, 0.99, 0.999)
_MAX_HEAD = 16 * 1024


def prometheus_text(totals: Totals) -> str:
    """Write the totals in Prometheus' text format."""
    counts = totals.counts.as_json()
    gauges = ("queued", "in_flight")
    lines = []
    for name, value in counts.items():
        kind = "gauge" if name in gauges else "counter"
        metric = f"load_requests_{name}" + ("" if kind == "gauge" else "_total")
        lines += [f"# TYPE {metric} {kind}", f"{metric} {value}"]
    lines += ["# TYPE load_connections gauge", f"load_connections {totals.connections}"]
    lines.append("# TYPE load_failures_total counter")
    for cause, number in totals.causes.items():
        lines.append(f'load_failures_total{{cause="{_escaped(cause)}"}} {number}')
    for metric in (*METRICS, *OTHER_METRICS):
        counted = totals.of(metric)
        if not counted:
            continue
        name = f"load_{metric}_seconds"
        lines.append(f"# TYPE {name} summary")
        for quantile, seconds in zip(_QUANTILES, quantiles(counted, _QUANTILES), strict=True):
            lines.append(f'{name}{{quantile="{quantile:g}"}} {seconds:.9g}')
        lines.append(f"{name}_count {sum(counted.values())}")
    return "\n".join(lines) + "\n"


class _MetricsConsumer(ProtocolConsumer):
    """Answers any request with the totals."""

    def __init__(self, totals: Totals) -> None:
        super().__init__()
        self._totals = totals

    def connection_made(self, connection: Connection) -> None:
        """Begin an exchange."""
        if connection.parser is None:
            connection.parser = DelimitedDecoder(b"\r\n\r\n", max_size=_MAX_HEAD)

    def data_received(self, data: bytes) -> bytes:
        """Answer when the head of the request is complete; it has no body."""
        head, rest = self.connection.parser.decode(data)
        if head is not None:
            body = prometheus_text(self._totals).encode()
            self.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            self.finished()
        return bytes(rest)


def metrics_server(address: str, totals: Totals) -> TcpServer:
    """Make a server of the totals: ``async with metrics_server("127.0.0.1:9100", totals)``.

    Raises:
        ValueError: the address has another form.
    """
    consumer: Any = partial(_MetricsConsumer, totals)
    return TcpServer(partial(Connection, consumer), address=parse_address(address))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
