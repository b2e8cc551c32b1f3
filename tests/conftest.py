"""What holds for every test: loop flavours, a time limit, and nothing left behind.

Every coroutine test runs once on asyncio's own loop and once on uvloop where that is installed.
A test fails when it leaves an asyncio task, a socket, a child process or a non-daemon thread
behind, when an event loop had to report an error, or when it takes longer than its limit.

Marks: ``slow`` (a limit of 300 s instead of 60), ``time_limit(seconds)``, ``allow_loop_errors``.
"""

import asyncio
import contextlib
import faulthandler
import gc
import io
import logging
import multiprocessing.resource_tracker
import os
import signal
import socket
import ssl
import stat
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType

import hypothesis
import pytest
import pytest_asyncio
import trustme

try:
    import uvloop
except ImportError:
    HAS_UVLOOP = False
else:
    HAS_UVLOOP = True

TIME_LIMIT = 60.0
SLOW_TIME_LIMIT = 300.0
# A hung test is interrupted again and again, should something swallow the first interruption;
# if nothing helps, a watchdog that needs neither the loop nor the GIL ends the process.
INTERRUPT_AGAIN = 10.0
LAST_RESORT = 60.0
# Loop turns that the last callbacks of a test get before what is left counts as leaked.
GRACE_TURNS = 10

# How long an example takes, or its making, says how busy the machine is: no reason to fail.  What
# hangs is ended by the time limit of its test.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")

# A shell's background job ignores Ctrl-C, and so would each program that a test ends with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


# -- options and loop flavours ---------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--loop-debug", action="store_true", help="run the event loops in asyncio's debug mode"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--loop-debug"):
        config.option.asyncio_debug = True
    # Output is not captured yet: this is the terminal's standard error.
    config.stash[STDERR] = os.dup(2)
    config.add_cleanup(lambda: os.close(config.stash[STDERR]))


def pytest_asyncio_loop_factories() -> dict[str, LoopFactory]:
    factories: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    if HAS_UVLOOP:
        factories["uvloop"] = uvloop.new_event_loop
    return factories


def pytest_collection_finish() -> None:
    # The guards collect garbage after each test.  What the imports made is never garbage, and
    # frozen it costs nothing.
    gc.collect()
    gc.freeze()


# -- time limit ------------------------------------------------------------------------------


class TimeLimitExceededError(KeyboardInterrupt):
    """The test took too long.

    Being a KeyboardInterrupt it leaves any task or callback, and the loop with it.
    """


class TimeLimit:
    """Interrupts one test after its limit, with the stacks of all threads and tasks."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.phase: str | None = None

    @contextlib.contextmanager
    def armed(self, stderr: int) -> Iterator[None]:
        """Hold the limit for one test, its fixtures included."""
        faulthandler.dump_traceback_later(self.limit + LAST_RESORT, exit=True, file=stderr)
        previous = None
        if hasattr(signal, "SIGALRM"):
            previous = signal.signal(signal.SIGALRM, self.interrupt)
            signal.setitimer(signal.ITIMER_REAL, self.limit, INTERRUPT_AGAIN)
        try:
            yield
        finally:
            if hasattr(signal, "SIGALRM"):
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, previous)
            faulthandler.cancel_dump_traceback_later()

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Handle the alarm: fail the running phase."""
        if self.phase is None:
            return  # between two phases: the next alarm finds the next phase
        message = f"{self.phase} exceeded the time limit of {self.limit:g} s\n\n{stacks()}"
        if self.phase == "teardown":
            pytest.fail(message, pytrace=False)  # the remaining finalizers still have to run
        raise TimeLimitExceededError(message)

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Name the phase that is interrupted when the time is up."""
        self.phase = phase
        try:
            yield
        except TimeLimitExceededError as exc:
            pytest.fail(str(exc), pytrace=False)
        finally:
            self.phase = None


STDERR = pytest.StashKey[int]()
LIMIT = pytest.StashKey[TimeLimit]()


def stacks() -> str:
    """Return the stacks of every thread and of every task of the running loop."""
    out = io.StringIO()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        out.write(f"thread {names.get(ident, ident)}:\n")
        out.writelines(traceback.format_stack(frame))
    with contextlib.suppress(RuntimeError):  # no loop is running
        for task in asyncio.all_tasks():
            out.write(f"{task!r}\n")
            task.print_stack(file=out)
    return out.getvalue()


def time_limit(item: pytest.Item) -> float:
    """Return the seconds an item may take."""
    if marker := item.get_closest_marker("time_limit"):
        return float(marker.args[0])
    return SLOW_TIME_LIMIT if item.get_closest_marker("slow") else TIME_LIMIT


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    limit = item.stash[LIMIT] = TimeLimit(time_limit(item))
    with limit.armed(item.config.stash[STDERR]):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    with item.stash[LIMIT].during("setup"):
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    with item.stash[LIMIT].during("call"):
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    with item.stash[LIMIT].during("teardown"):
        yield


# -- nothing left behind ---------------------------------------------------------------------


def open_sockets() -> dict[tuple[int, int], int]:
    """Map the identity of each open socket of this process to a descriptor of it."""
    found = {}
    for name in os.listdir("/dev/fd") if os.path.isdir("/dev/fd") else ():
        with contextlib.suppress(OSError):  # the directory's own descriptor is gone by now
            status = os.fstat(int(name))
            if stat.S_ISSOCK(status.st_mode):
                found[status.st_dev, status.st_ino] = int(name)
    return found


def new_sockets(before: dict[tuple[int, int], int]) -> list[str]:
    """Describe the sockets that are open now and were not before."""
    found = []
    for identity, descriptor in open_sockets().items():
        if identity not in before:
            try:
                copy = os.dup(descriptor)
            except OSError:
                continue  # a thread has closed it meanwhile
            with socket.socket(fileno=copy) as sock:
                kind = f"{sock.family.name} {sock.type.name}"
                found.append(f"socket left open: {kind} fd={descriptor} {sock.getsockname()}")
    return found


def child_processes() -> dict[int, str]:
    """Map the pid of each child, zombies included, to its command line."""
    found = {}
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread ended
            for pid in listing.read_text().split():
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
                    found[int(pid)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


class LoopErrors(logging.Handler):
    """Keeps what event loops report: every loop's exception handler logs an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []
        self.warnings: list[str] = []
        self.expected = False

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def warned(self, message: Warning | str, *args: object, **kwargs: object) -> None:
        """Keep what a loop warns of while it is closed, in place of ``warnings.showwarning``."""
        self.warnings.append(str(message))

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Listen, also after a test that has configured logging."""
        logger = logging.getLogger("asyncio")
        logger.disabled = False
        logger.setLevel(logging.NOTSET)
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)

    def unexpected(self) -> list[str]:
        """Describe the errors, unless the test expects some."""
        if self.expected:
            return []
        form = logging.Formatter()
        return [f"error in an event loop: {form.format(record)}" for record in self.records]


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[LoopErrors]:
    """Compare the process before the test's loop exists with the process after it is closed."""
    errors = LoopErrors()
    errors.expected = request.node.get_closest_marker("allow_loop_errors") is not None
    sockets, children = open_sockets(), child_processes()
    threads = set(threading.enumerate())
    with errors.attached():
        yield errors
        problems = new_sockets(sockets)
        problems += [
            f"thread left running: {thread!r}"
            for thread in threading.enumerate()
            if thread not in threads and not thread.daemon
        ]
        problems += [
            f"child process left behind: {pid} {command}"
            for pid, command in child_processes().items()
            # multiprocessing keeps one such child for the life of the process
            if pid not in children and multiprocessing.resource_tracker.__name__ not in command
        ]
        # Tasks whose exception nobody took, coroutines nobody awaited, transports nobody
        # closed: they speak when they are collected, and shall speak in their own test.
        gc.collect()
    problems += errors.warnings + errors.unexpected()
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest_asyncio.fixture
async def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@pytest.fixture(autouse=True)
def _loop_left_clean(
    request: pytest.FixtureRequest, _nothing_left_behind: LoopErrors
) -> Iterator[None]:
    """Look at the loop when the test's own fixtures are gone and before the loop is closed.

    Closing cancels the tasks, and on uvloop closes the transports, that a test forgot.  Being the
    first that asks for the loop, this is torn down after every fixture that uses it.
    """
    if not request.node.get_closest_marker("asyncio"):  # only coroutine tests have a loop
        yield
        return
    loop: asyncio.AbstractEventLoop = request.getfixturevalue("_loop")
    # The loop does not run here or below: while it does, uvloop has two sockets of its own.
    sockets = open_sockets()
    yield
    # When it is closed, uvloop warns of its open handles.  Raised as an error, such a warning
    # would keep the handle open, and the loop would wait for it for ever.  pytest restores both
    # settings after the teardown.
    warnings.filterwarnings("always", "unclosed resource", ResourceWarning)
    warnings.showwarning = _nothing_left_behind.warned
    tasks: list[str] = []
    for _ in range(GRACE_TURNS):
        tasks = [f"task left running: {task!r}" for task in asyncio.all_tasks(loop)]
        if not tasks and not new_sockets(sockets):
            return
        loop.run_until_complete(asyncio.sleep(0))
    # A job in a thread that nobody waits for any more, as the lookup of a name, closes its own.
    loop.run_until_complete(loop.shutdown_default_executor())
    if problems := tasks + new_sockets(sockets):
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture
def loop_errors(_nothing_left_behind: LoopErrors) -> list[logging.LogRecord]:
    """Return what event loops reported so far; a test that asks for it judges it itself."""
    _nothing_left_behind.expected = True
    return _nothing_left_behind.records


# -- TLS and ports ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    """Return a certificate authority that nobody but the test trusts."""
    return trustme.CA()


@pytest.fixture(scope="session")
def server_ssl(ca: trustme.CA) -> ssl.SSLContext:
    """Return a server's TLS context for localhost and its addresses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost", "127.0.0.1", "::1").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def client_ssl(ca: trustme.CA) -> ssl.SSLContext:
    """Return a client's TLS context that trusts the test's authority only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    return context


@pytest.fixture
def free_port() -> int:
    """Return a TCP port of the loopback that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
