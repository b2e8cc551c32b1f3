"""One process that serves by itself: ``--concurrency thread``.

For debugging, small servers, and systems without worker processes.  Nobody watches its loop, and
its code can't be reloaded.
"""

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from pulsar_client.app import logs, status
from pulsar_client.app.certificates import Certificates
from pulsar_client.app.configuration import Configuration
from pulsar_client.app.listeners import Listeners
from pulsar_client.app.pidfile import PidFile
from pulsar_client.app.privileges import Identity
from pulsar_client.app.service_manager import ServiceManager
from pulsar_client.app.settings import Settings
from pulsar_client.app.signal_listener import SignalListener
from pulsar_client.app.watching import Windows
from pulsar_client.app.worker import Worker
from pulsar_client.app.worker_process import loop_factory, reason_of
from pulsar_client.exceptions import ConfigError

__all__ = ["SingleProcess"]

logger = logging.getLogger("pulsar_client.app")

_SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGTTIN", "SIGTTOU", "SIGUSR1")
# What a stop may take beyond graceful_timeout is 1 s (P13), a stuck handler or not.
_END_AFTER = 0.7
# What the last words may take of it: the log itself may be stuck.
_WORDS_TIME = 0.2


class SingleProcess:
    """Runs an application in this process; the parameters are those of `Arbiter`."""

    def __init__(
        self,
        application: Any,
        configuration: Configuration,
        *,
        load: Callable[[], Configuration],
        open_listeners: Callable[..., Listeners],
        log_file: logs.LogFile | None = None,
    ) -> None:
        self.application = application
        self.configuration = configuration
        self.started = time.time()
        self.listeners = Listeners([], "")
        self.worker: Worker | None = None
        #: The signal that has told it to stop.
        self.stopped_by = ""
        self._load = load
        self._open_listeners = open_listeners
        self._log_file = log_file
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deadline: float | None = None
        self._is_ready = False
        self._is_over = False
        self._windows = Windows(self.info)
        self._manager = ServiceManager(os.environ)
        self._pidfile: PidFile | None = None
        self._reloads = {"done": 0, "failed": 0}

    def info(self) -> dict[str, Any]:
        """Tell how the application is."""
        state = "serving" if self._is_ready else "starting"
        worker = self.worker
        return status.server_info(
            self,
            state="stopping" if self._deadline is not None else state,
            workers=[] if worker is None else [status.of_worker(worker, self.started)],
            wanted=1,
            past={},
            restarts={},
            reloads=self._reloads,
        )

    @property
    def settings(self) -> Settings:
        """The settings as of the last reload that succeeded."""
        return self.configuration.settings

    def loop_factory(self) -> asyncio.AbstractEventLoop:
        """Make the loop of the setting."""
        factory = loop_factory(self.settings.loop)
        return asyncio.new_event_loop() if factory is None else factory()

    async def run(self) -> int:
        """Serve until told to stop.

        Returns:
            The exit code: 0 after a signal, 3 could not start.
        """
        self._loop = asyncio.get_running_loop()
        # Not the loop's own handlers: those are never called while a request blocks the loop.
        present = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
        listener = SignalListener(present, self._on_signal)
        try:
            await self._serve()
        except Exception as error:
            if self._is_ready:
                raise
            if not isinstance(error, ConfigError | OSError):
                logger.exception("worker 0 failed")
            logger.error("could not start: %s", reason_of(error))
            return 3
        finally:
            self.listeners.close()
            self._windows.close()
            if self._pidfile is not None:
                self._pidfile.close()
            listener.close(restore=self._deadline is None)
            self._is_over = True
        return 0

    async def _serve(self) -> None:
        settings = self.settings
        certificates = Certificates.read(settings)
        identity = Identity.wanted(settings)
        self.listeners = self._open_listeners(settings)
        if settings.pidfile is not None:
            self._pidfile = PidFile(settings.pidfile)
        await self._windows.open(settings)
        await self.application.monitor_start(self)
        context = None if certificates is None else certificates.context(settings)
        if identity is not None:
            identity.assume()
        self.worker = Worker(self.application, settings, self.listeners.groups, sslcontext=context)
        if self._deadline is None:
            await self.worker.serve(self._ready)

    def _ready(self) -> None:
        self._is_ready = True
        for url in self.listeners.urls:
            logs.announce(f"listening on {url}")
        self._manager.ready("serving")

    def _on_signal(self, number: int) -> None:
        """Act on it, in the thread of the listener."""
        assert self._loop is not None
        name = signal.Signals(number).name
        if name in ("SIGTERM", "SIGINT", "SIGQUIT"):
            quick = name == "SIGQUIT" or self._deadline is not None
            seconds = _END_AFTER + (0.0 if quick else self.settings.graceful_timeout)
            deadline = time.monotonic() + seconds
            self.stopped_by = self.stopped_by or name
            if self._deadline is None or deadline < self._deadline:
                self._deadline = deadline
                threading.Thread(target=self._end_at, args=(deadline,), daemon=True).start()
            self._loop.call_soon_threadsafe(self._stop, number, quick)
        else:
            self._loop.call_soon_threadsafe(self._on_other_signal, name)

    def _end_at(self, deadline: float) -> None:
        """End the process, in a thread, should the loop or another thread be stuck."""
        threading.Event().wait(max(0.0, deadline - time.monotonic()))
        last_resort = threading.Timer(_WORDS_TIME, os._exit, [0])
        last_resort.daemon = True
        last_resort.start()
        self.listeners.close()
        self._windows.close()
        if self._pidfile is not None:
            self._pidfile.close()
        left = "threads of the application are still running"
        if not self._is_over:
            connections = 0 if self.worker is None else self.worker.connections
            left = f"its loop has not come to an end, with {connections} connections open"
        logger.warning("stopped by %s at the deadline, exit code 0: %s", self.stopped_by, left)
        os._exit(0)

    def _stop(self, number: int, quick: bool) -> None:
        logger.info("stopping%s", "" if quick else " gracefully")
        self._manager.stopping()
        self.listeners.refuse_newcomers()
        if self.worker is not None:
            self.worker.on_signal(number)

    def _on_other_signal(self, name: str) -> None:
        if name == "SIGHUP":
            self._reload()
        elif name == "SIGUSR1":
            if self._log_file is not None:
                self._log_file.reopen()
        else:
            logger.warning("%s is ignored: there are no worker processes", name)

    def _reload(self) -> None:
        """Take new certificates over; settings and code need a restart."""
        worker = self.worker
        if worker is None:
            return
        try:
            configuration = self._load()
            certificates = Certificates.read(configuration.settings)
            if certificates is not None and worker.sslcontext is not None:
                certificates.renew(worker.sslcontext)
        except (ConfigError, OSError) as error:
            self._reloads["failed"] += 1
            logger.error("reload failed, nothing is changed: %s", reason_of(error))
            return
        with contextlib.suppress(ValueError):
            logging.getLogger("pulsar_client").setLevel(configuration.settings.log_level.upper())
        self._reloads["done"] += 1
        logger.info("reloaded certificates and log_level; the rest needs a restart")
