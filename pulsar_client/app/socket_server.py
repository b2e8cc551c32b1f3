"""`SocketServer`: an application that serves in production, from one callable.

It ties settings, sockets, the arbiter and the workers together, and has the methods that a
subclass overrides.
"""

import asyncio
import builtins
import logging
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from pulsar_client.app import logs, main_module
from pulsar_client.app.certificates import check_completeness
from pulsar_client.app.configuration import Configuration, load, read_params
from pulsar_client.app.listeners import Listeners, inherited_sockets
from pulsar_client.app.settings import Settings
from pulsar_client.app.worker import Worker
from pulsar_client.exceptions import ConfigError
from pulsar_client.protocols import Connection, PulsarProtocol
from pulsar_client.servers import TcpServer
from pulsar_client.servers.listening_sockets import bind_listening_sockets

__all__ = ["SocketServer"]

_USAGE = 2


class SocketServer:
    """Serves connections in worker processes, or in this one.

    ``SocketServer(EchoServerProtocol).start()`` reads the command line, the environment and a
    config file, and serves until it is told to stop.

    Args:
        callable: makes a `ProtocolConsumer` for each request, without arguments; None for the
            class attribute of that name.
        load_config: read the command line, the environment (``PULSAR_…``) and the config file
            when it starts; False to use the parameters alone.
        name: what the help and log lines call it.
        **params: defaults of settings, by their names.

    Raises:
        ConfigError: an unknown setting or a value that is not allowed; the message names both.
        TypeError: ``callable`` is not callable, or makes a connection.

    Workers are fresh interpreters that import the code anew.  So the callable, and the class if
    it is a subclass, must be defined at the top level of a module or script.
    """

    #: Makes the server of each address, in the worker.
    server_factory: ClassVar[Callable[..., Any]] = TcpServer
    #: The ``ssl`` module, or None where Python has none.
    support_ssl: ClassVar[Any] = ssl
    callable: Any = None
    #: How a plain socket is called in ``listening on tcp://…``, and its type.
    scheme: ClassVar[str] = "tcp"
    socket_type: ClassVar[int] = socket.SOCK_STREAM
    #: Settings that have no meaning for this kind of server.
    refused_settings: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        callable: Callable[[], Any] | None = None,
        load_config: bool = True,
        *,
        name: str | None = None,
        **params: Any,
    ) -> None:
        if callable is None:
            callable = type(self).callable
        if callable is None or not builtins.callable(callable):
            raise TypeError(
                f"callable is {callable!r}, expected what makes a ProtocolConsumer, such as its "
                "class"
            )
        _refuse_protocols(callable)
        read_params(params, self.refused_settings)
        self.callable = callable
        self.load_config = load_config
        self.name = name or type(self).__name__.lower()
        self.params = params
        self.logger = logging.getLogger("pulsar_client.app")
        self._runner: Any = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {len(self.addresses)} addresses>"

    def __getstate__(self) -> dict[str, Any]:
        # What a worker gets.
        return {**self.__dict__, "_runner": None}

    # What subclasses may override

    async def monitor_start(self, monitor: Any) -> None:
        """Prepare something in the process that starts first, once, before any worker exists.

        Args:
            monitor: the arbiter, or the only process; it has ``settings`` and ``listeners``.
        """

    async def worker_start(self, worker: Worker, exc: BaseException | None = None) -> None:
        """Start the servers of a worker, in the worker.

        Args:
            worker: has the listening sockets, a list for each address of ``bind``; what is added
                to its ``servers`` is closed with it.
            exc: why it can't start; None.
        """
        if exc is not None:
            raise exc
        for idx, sockets in enumerate(worker.sockets):
            factory = self.protocol_factory(idx)
            worker.servers.append(
                await self.create_server(worker, factory, sockets=sockets, idx=idx)
            )

    async def create_server(
        self,
        worker: Worker,
        protocol_factory: Callable[..., Any],
        address: Any = None,
        sockets: Sequence[socket.socket] | None = None,
        idx: int = 0,
    ) -> Any:
        """Make a server that serves; it is not added to the worker.

        Args:
            worker: whose settings it gets.
            protocol_factory: makes its connections.
            address: where to listen, instead of sockets.
            sockets: bound already.
            idx: which of the addresses of ``bind`` this is.

        Raises:
            OSError: the address can't be bound.
        """
        server = self.server_factory(
            protocol_factory,
            address=address,
            sockets=sockets,
            name=self.name,
            **worker.server_options(),
        )
        await server.start_serving(worker.settings.backlog, sslcontext=worker.sslcontext)
        return server

    async def close_server(self, server: Any, grace: float, *, last: bool) -> None:
        """Let a server finish what is in flight within so many seconds.

        Args:
            server: one of the worker's.
            grace: seconds.
            last: nobody else takes what waits in the queues of its sockets.
        """
        await server.close(grace=grace, accept_queued=last)

    def protocol_factory(self, idx: int = 0) -> Callable[..., Any]:
        """Give the factory of connections for an address of ``bind``."""
        return partial(Connection, self.callable)

    # What it is like

    @property
    def address(self) -> Any:
        """The first address it is bound to; None before it has started."""
        addresses = self.addresses
        return addresses[0] if addresses else None

    @property
    def addresses(self) -> list[Any]:
        """Every address it is bound to; empty before it has started."""
        return [] if self._runner is None else list(self._runner.listeners.addresses)

    def info(self) -> dict[str, Any]:
        """Tell how it is: ``server``, ``clients`` and a list of ``workers``.

        The same is shown by ``python -m pulsar_client status``.  It is empty before the start,
        and known only to the process that `start` runs in, not to workers.
        """
        info: dict[str, Any] = {} if self._runner is None else self._runner.info()
        return info

    # Life

    def configuration(self) -> Configuration:
        """Read the settings from all their sources, as `start` does.

        Raises:
            ConfigError: an unknown name or a bad value.
            SystemExit: the command line asks for help, or has an unknown flag.
        """
        environ: Mapping[str, str] | None = None
        arguments: list[str] | None = None
        if self.load_config:
            environ, arguments = os.environ, sys.argv[1:]
        return load(
            self.params,
            arguments=arguments,
            environ=environ,
            prog=_prog(),
            description=_first_line(sys.modules["__main__"].__doc__),
            refused=self.refused_settings,
        )

    def start(self) -> None:
        """Serve until told to stop by a signal; then return.

        Raises:
            SystemExit: with code 1 after a failure while running, 2 for wrong use, 3 when it
                could not start; a message has been written to standard error.
            RuntimeError: it is called in an event loop or outside of the main thread.
        """
        if main_module.is_running_again():
            raise main_module.StartReached
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("start() must be called in the main thread: it handles signals")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise RuntimeError("start() must not be called while an event loop runs: it blocks")
        try:
            configuration = self.configuration()
            if configuration.check:
                check_completeness(configuration.settings)
        except ConfigError as error:
            logs.standard_error().write(f"{_prog()}: error: {error}\n")
            raise SystemExit(_USAGE) from None
        if configuration.check:
            sys.stdout.write(f"{configuration}\n")
            return
        code = self._run(configuration)
        if code:
            raise SystemExit(code)

    def _run(self, configuration: Configuration) -> int:
        settings = configuration.settings
        if settings.umask is not None:
            os.umask(settings.umask)
        try:
            log_file = logs.configure(settings)
        except OSError as error:
            logs.standard_error().write(f"could not start: log_file: {error}\n")
            return 3
        # Here, as a worker imports this module too: it starts without what only others need.
        from pulsar_client.app.arbiter import Arbiter
        from pulsar_client.app.single_process import SingleProcess

        kind: Any = Arbiter
        if settings.concurrency == "thread":
            kind = SingleProcess
        elif os.name != "posix":
            self.logger.warning("no worker processes on this system: one process serves")
            kind = SingleProcess
        self._runner = kind(
            self,
            configuration,
            load=self.configuration,
            open_listeners=self.open_listeners,
            log_file=log_file,
        )
        try:
            with asyncio.Runner(loop_factory=self._runner.loop_factory) as runner:
                code = int(runner.run(self._runner.run()))
        except Exception:
            self.logger.exception("failed, exit code 1")
            return 1
        if code == 0:  # else it has said why
            self.logger.info("stopped by %s, exit code 0", self._runner.stopped_by)
        return code

    def open_listeners(self, settings: Settings, kept: Listeners | None = None) -> Listeners:
        """Make the listening sockets of the settings; called by the process that starts first.

        Args:
            settings: ``bind`` and the like.
            kept: those of before a reload, which are kept where the address is the same.

        Raises:
            ConfigError: an address is not allowed.
            OSError: one can't be bound.
        """
        scheme = "tls" if settings.cert_file is not None else self.scheme
        inherited = []
        if kept is None:
            inherited = inherited_sockets(os.environ, os.getpid(), self.socket_type)
        elif kept.inherited:
            inherited = kept.inherited
        return Listeners.open(
            settings, scheme=scheme, kept=kept, inherited=inherited, bind=self.bind
        )

    def bind(self, address: Any, *, backlog: int) -> list[socket.socket]:
        """Make the sockets of one address."""
        return bind_listening_sockets(address, backlog=backlog)


def _refuse_protocols(factory: Callable[..., Any]) -> None:
    # Found here, it is one line at the start instead of a traceback for each client.
    made: Any = factory
    while isinstance(made, partial):
        made = made.func
    if isinstance(made, type) and issubclass(made, PulsarProtocol):
        raise TypeError(
            f"callable is {factory!r}, which makes a connection, expected what makes a "
            "ProtocolConsumer, such as its class; protocol_factory() can be overridden to make "
            "another kind of connection"
        )


def _prog() -> str:
    """Give the command as a person would type it again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return f"python {os.path.basename(sys.argv[0])}"


def _first_line(text: str | None) -> str | None:
    return text.strip().splitlines()[0] if text and text.strip() else None
