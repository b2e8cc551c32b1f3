"""The arbiter: it binds, starts workers, watches them, and never accepts a client itself.

It decides what a signal, the death of a worker and the silence of another one lead to.  Requests
and protocols are unknown here, and no code of the application runs but its ``monitor_start``.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from pulsar_client.app import logs, status
from pulsar_client.app.certificates import Certificates
from pulsar_client.app.configuration import Configuration
from pulsar_client.app.crew import Crew
from pulsar_client.app.handover import Handover, Reload
from pulsar_client.app.listeners import Listeners
from pulsar_client.app.main_module import MainModule, pickled
from pulsar_client.app.pidfile import PidFile
from pulsar_client.app.privileges import Identity
from pulsar_client.app.scoreboard import Scoreboard
from pulsar_client.app.service_manager import ServiceManager
from pulsar_client.app.settings import Settings
from pulsar_client.app.stuck_workers import StuckWorkers
from pulsar_client.app.watching import Windows
from pulsar_client.app.worker_handle import WorkerHandle, describe_status
from pulsar_client.app.worker_process import WorkerOrder, reason_of
from pulsar_client.exceptions import ConfigError

__all__ = ["Arbiter"]

logger = logging.getLogger("pulsar_client.app")

_STOPS = ("SIGTERM", "SIGINT", "SIGQUIT")
_SIGNALS = ("SIGHUP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGCHLD")
# What a stop may take beyond graceful_timeout, and a quick one in all, is 1 s (P13): workers
# that are still there after this are killed.
_KILL_AFTER = 0.5
_COULD_NOT_START = 3


class Arbiter:
    """Runs an application with worker processes.

    Args:
        application: the `SocketServer`.
        configuration: its settings.
        load: reads the settings anew; for a reload.
        open_listeners: makes the listening sockets of settings, as `Listeners.open` does.
    """

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
        self.loop_factory = asyncio.SelectorEventLoop
        self.started = time.time()
        self.listeners = Listeners([], "")
        self.workers: dict[int, WorkerHandle] = {}
        self.crew: Crew | None = None
        #: What became of reloads.
        self.reloads = {"done": 0, "failed": 0}
        #: The signal that has told it to stop.
        self.stopped_by = ""
        self._load = load
        self._open_listeners = open_listeners
        self._log_file = log_file
        self._pickled = b""
        self._main: MainModule | None = None
        self._board = Scoreboard()
        # Only this process holds the end that is written to: it ends when we do, however we end.
        self._lifeline, self._lifeline_held = os.pipe()
        self._windows = Windows(self.info)
        self._manager = ServiceManager(os.environ)
        self._stuck_workers = StuckWorkers(self.workers, self._manager)
        self._pidfile: PidFile | None = None
        # Of workers that are gone.
        self._past = {"accepted": 0, "requests": 0, "errors": 0}
        self._crews: dict[int, Crew] = {}
        self._next: Reload | None = None
        self._handover: Handover | None = None
        self._reload_wanted = False
        self._stopping = False
        self._kill_timer: asyncio.TimerHandle | None = None
        self._last_words: str | None = None
        self._over: asyncio.Future[None] | None = None

    @property
    def settings(self) -> Settings:
        """The settings as of the last reload that succeeded."""
        return self.configuration.settings

    async def run(self) -> int:
        """Serve until told to stop.

        Returns:
            The exit code: 0 after a signal, 3 could not start.
        """
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        for name in _STOPS:
            loop.add_signal_handler(getattr(signal, name), self._stop, name)
        for name in _SIGNALS:
            loop.add_signal_handler(getattr(signal, name), getattr(self, f"_on_{name.lower()}"))
        self._on_sigchld()  # for those that ended before
        try:
            try:
                await self._begin()
            except Exception as error:
                if not isinstance(error, ConfigError | OSError):
                    logger.exception("the arbiter failed")
                self._fail(reason_of(error))
            await self._over
        finally:
            await self._end()
        if self._last_words is None:
            return 0
        logger.error("could not start: %s", self._last_words)
        return _COULD_NOT_START

    async def _begin(self) -> None:
        settings = self.settings
        certificates = Certificates.read(settings)
        identity = Identity.wanted(settings)
        self._pickled, self._main = pickled(self.application)
        self.listeners = self._open_listeners(settings)
        if settings.pidfile is not None:
            self._pidfile = PidFile(settings.pidfile)
        await self._windows.open(settings)
        await self.application.monitor_start(self)
        if self._stopping:
            return
        self.crew = self._new_crew(settings, self.listeners, certificates, identity)
        self._stuck_workers.look()
        self.crew.start()

    def _new_crew(
        self,
        settings: Settings,
        listeners: Listeners,
        certificates: Certificates | None,
        identity: Identity | None,
    ) -> Crew:
        order = partial(
            WorkerOrder,
            application=self._pickled,
            main=self._main,
            arguments=sys.argv,
            settings=settings,
            certificates=certificates,
            identity=identity,
            sockets=[[sock.fileno() for sock in group] for group in listeners.groups],
            control=-1,
            lifeline=-1,
            board=-1,
            row=-1,
            stacks=-1,
        )

        def start(idx: int) -> WorkerHandle:
            worker = WorkerHandle(order(idx=idx), self._board, self._lifeline, self._on_message)
            self.workers[worker.pid] = worker
            self._crews[worker.pid] = crew
            logger.debug("worker %d has pid %d", idx, worker.pid)
            return worker

        crew = Crew(
            settings.workers,
            start,
            settings.graceful_timeout,
            on_ready=self._crew_ready,
            on_failed=self._crew_failed,
        )
        return crew

    def info(self) -> dict[str, Any]:
        """Tell how the application is."""
        crew = self.crew
        state = "starting"
        if self._stopping:
            state = "stopping"
        elif crew is not None and crew.was_ready:
            state = "reloading" if self._next or self._handover else "serving"
        return status.server_info(
            self,
            state=state,
            workers=map(status.of_handle, self.workers.values()),
            wanted=0 if crew is None else crew.size,
            past=self._past,
            restarts={} if crew is None else crew.restarts,
            reloads=self.reloads,
        )

    # What workers tell, and how they end

    def _on_message(self, worker: WorkerHandle, message: dict[str, Any]) -> None:
        crew = self._crews[worker.pid]
        match message["say"]:
            case "ready":
                worker.became_ready()
                self._stuck_workers.expect(worker)
                if self._stopping:
                    worker.stop(self.settings.graceful_timeout, "stop", last=True)
                else:
                    crew.ready(worker)
            case "enough":
                crew.enough(worker)
            case "closed" if self._handover is not None:
                self._handover.has_stopped(worker)
            case _:
                worker.note(message)

    def _on_sigchld(self) -> None:
        for worker in tuple(self.workers.values()):
            wait_status = worker.poll()
            if wait_status is not None:
                self._ended(worker, wait_status)
        if os.getpid() == 1:
            # The system gives orphans to process 1: they are nobody's workers (P12).
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass

    def _ended(self, worker: WorkerHandle, wait_status: int) -> None:
        last = status.of_handle(worker)
        stacks = worker.ended()
        for name in self._past:
            self._past[name] += last[name]
        del self.workers[worker.pid]
        crew = self._crews.pop(worker.pid)
        how = describe_status(wait_status)
        asked_for = worker.state == "retiring" and (wait_status == 0 or worker.ready_at is None)
        if not asked_for and not (self._stopping and wait_status == 0):
            wanted = worker.state == "retiring" or (worker.signalled and wait_status == 0)
            text = "; its stacks:\n" + stacks if stacks else ""
            logger.log(
                logging.WARNING if wanted else logging.ERROR,
                "worker %(idx)d (pid %(pid)d) %(how)s after %(age).1f s, with %(requests)d "
                "requests served and %(connections)d connections in flight%(text)s",
                {**last, "how": how, "text": text},
            )
        if self._handover is not None:
            self._handover.has_stopped(worker)
        if not self._stopping:
            crew.ended(worker, worker.cause or how)
        if self._stopping and not self.workers:
            self._finish()

    def _crew_ready(self, crew: Crew) -> None:
        if crew is not self.crew:
            self._take_over(crew)
            return
        for url in self.listeners.urls:
            logs.announce(f"listening on {url}")
        self._manager.ready(f"{crew.size} workers serve")

    def _crew_failed(self, crew: Crew, reason: str) -> None:
        if crew is self.crew:
            crew.kill()
            self._fail(reason)
        else:
            self._give_up_reload(reason)

    # Reload

    def _on_sighup(self) -> None:
        if self._stopping or self.crew is None:
            return
        if self._next or self._handover or not self.crew.was_ready:
            self._reload_wanted = True  # one at a time; all that come meanwhile are one
            return
        self._reload_wanted = False
        logger.info("reloading")
        self._manager.reloading()
        try:
            self._next = self._begin_reload()
            self._next.crew.start()
        except (ConfigError, OSError, RuntimeError) as error:
            self._give_up_reload(reason_of(error))

    def _begin_reload(self) -> Reload:
        configuration = self._load()
        settings, fixed = configuration.settings.after(self.settings)
        for name in fixed:
            logger.warning("%s has changed: that needs a restart", name)
        configuration = Configuration(settings, configuration.origins)
        certificates = Certificates.read(settings)
        identity = Identity.wanted(settings)
        listeners = self._open_listeners(settings, kept=self.listeners)
        crew = self._new_crew(settings, listeners, certificates, identity)
        return Reload(configuration, listeners, crew)

    def _take_over(self, crew: Crew) -> None:
        """The new workers are ready: let the old ones finish."""
        reload, self._next = self._next, None
        assert reload is not None
        assert self.crew is not None
        old, self.crew = self.crew, crew
        for cause, count in old.restarts.items():
            crew.restarts[cause] = crew.restarts.get(cause, 0) + count
        new_urls = [url for url in reload.listeners.urls if url not in self.listeners.urls]
        before, self.listeners = self.listeners, reload.listeners
        self.configuration = reload.configuration
        before.close(but=reload.listeners)
        logging.getLogger("pulsar_client").setLevel(self.settings.log_level.upper())
        accepting = [worker for worker in old.workers() if worker.state == "ready"]
        old.retire("reload")
        self._handover = Handover(accepting, partial(self._reloaded, crew.size, new_urls))

    def _reloaded(self, size: int, new_urls: list[str]) -> None:
        self._handover = None
        self.reloads["done"] += 1
        for url in new_urls:
            logs.announce(f"listening on {url}")
        logger.info("reloaded: %d new workers serve", size)
        self._manager.ready(f"{size} workers serve, reloaded")
        self._reload_again()

    def _give_up_reload(self, reason: str) -> None:
        reload, self._next = self._next, None
        if reload is not None:
            reload.crew.kill()
            reload.listeners.close(but=self.listeners)
        self.reloads["failed"] += 1
        logger.error("reload failed, nothing is changed: %s", reason)
        self._manager.ready(f"reload failed: {reason}")
        self._reload_again()

    def _reload_again(self) -> None:
        if self._reload_wanted:
            asyncio.get_running_loop().call_soon(self._on_sighup)

    # Other signals

    def _on_sigttin(self) -> None:
        if self.crew is not None and self.crew.was_ready and not self._stopping:
            self.crew.grow()
            logger.info("one worker more: %d", self.crew.size)

    def _on_sigttou(self) -> None:
        if self.crew is not None and self.crew.was_ready and not self._stopping:
            if self.crew.shrink():
                logger.info("one worker less: %d", self.crew.size)
            else:
                logger.warning("the last worker stays")

    def _on_sigusr1(self) -> None:
        if self._log_file is not None:
            self._log_file.reopen()
        for worker in self.workers.values():
            worker.channel.send(do="reopen")

    # The end

    def _stop(self, name: str) -> None:
        self.stopped_by = self.stopped_by or name
        quick = name == "SIGQUIT" or self._stopping
        grace = 0.0 if quick else self.settings.graceful_timeout
        if not self._stopping:
            logger.info("stopping%s", "" if quick else " gracefully")
            self._manager.stopping()
            self.listeners.refuse_newcomers()
        self._stopping = True
        if self._handover is not None:
            self._handover.cancel()
        for crew in (self.crew, None if self._next is None else self._next.crew):
            if crew is not None:
                crew.dismiss()
        for worker in self.workers.values():
            worker.stop(grace, "stop", last=True)
        # Only the workers hold the sockets now: the last one to close them empties the queues.
        self.listeners.close()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._kill_timer = asyncio.get_running_loop().call_later(
            grace + _KILL_AFTER, self._kill_all
        )
        if not self.workers:
            self._finish()

    def _kill_all(self) -> None:
        for worker in self.workers.values():
            logger.warning("%r did not end in time", worker)
            worker.signal(signal.SIGKILL)

    def _fail(self, reason: str) -> None:
        """Nothing was ever served: everything ends (P10)."""
        self._last_words = reason
        self._stopping = True
        for worker in self.workers.values():
            worker.kill()
        if not self.workers:
            self._finish()

    def _finish(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    async def _end(self) -> None:
        loop = asyncio.get_running_loop()
        self._stuck_workers.close()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        for worker in self.workers.values():  # after an error of this process itself
            worker.end()
        for name in (*_STOPS, *_SIGNALS):
            loop.remove_signal_handler(getattr(signal, name))
        self.listeners.close()
        self._windows.close()
        if self._pidfile is not None:
            self._pidfile.close()
        self._board.close()
        os.close(self._lifeline)
        os.close(self._lifeline_held)
