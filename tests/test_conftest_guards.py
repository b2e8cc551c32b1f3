"""The guards of conftest.py: each catches the fault it is there for."""

import signal
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[1]
HAS_UVLOOP = "uvloop" in sys.modules  # conftest.py imports it where it is installed
FLAVOURS = 2 if HAS_UVLOOP else 1


@pytest.fixture
def run(pytester: pytest.Pytester) -> "Run":
    return Run(pytester)


class Run:
    """Runs a test file under the project's own conftest.py and settings, in its own process."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
        (pytester.path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())

    def __call__(self, source: str, *options: str) -> pytest.RunResult:
        path = self.pytester.makepyfile(f"import asyncio\nimport pytest\n{source}")
        return self.pytester.runpytest_subprocess("-p", "no:cacheprovider", *options, path)


CLEAN = """
import socket, subprocess, sys, threading

@pytest.fixture
async def server():
    async def handle(reader, writer):
        writer.write(await reader.readline())
        writer.close()
    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()

async def test_tidy(server, free_port):
    reader, writer = await asyncio.open_connection(*server)
    writer.write(b"a\\n")
    assert await reader.readline() == b"a\\n"
    writer.close()
    await writer.wait_closed()
    await asyncio.get_running_loop().run_in_executor(None, len, b"")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    assert await process.wait() == 0

def test_tidy_too():
    subprocess.run([sys.executable, "-c", ""], check=True)
    socket.socket().close()
    thread = threading.Thread(target=len, args=(b"",))
    thread.start()
    thread.join()
"""


def test_a_tidy_test_passes(run: Run) -> None:
    run(CLEAN).assert_outcomes(passed=FLAVOURS + 1)


def test_each_coroutine_test_runs_on_each_loop(run: Run) -> None:
    result = run(
        """
async def test_flavour(request):
    module = type(asyncio.get_running_loop()).__module__
    print("\\nflavour", module.split(".")[0])
    assert not asyncio.get_running_loop().get_debug()
""",
        "-sv",
    )
    result.assert_outcomes(passed=FLAVOURS)
    result.stdout.fnmatch_lines(["flavour asyncio"])
    if HAS_UVLOOP:
        result.stdout.fnmatch_lines(["flavour uvloop"])
        result.stdout.fnmatch_lines(["*test_flavour?asyncio?*", "*test_flavour?uvloop?*"])


def test_loop_debug_is_an_option(run: Run) -> None:
    run(
        "async def test_debug():\n    assert asyncio.get_running_loop().get_debug()\n",
        "--loop-debug",
    ).assert_outcomes(passed=FLAVOURS)


PLANTED = {
    "task": (
        """
tasks = []

async def test_leak():
    tasks.append(asyncio.create_task(asyncio.sleep(3600)))
""",
        "task left running: *",
    ),
    "task of a fixture": (
        """
@pytest.fixture
async def owner():
    task = asyncio.create_task(asyncio.sleep(3600))
    yield task

async def test_leak(owner):
    pass
""",
        "task left running: *",
    ),
    "transport": (
        """
kept = []

async def test_leak():
    server = await asyncio.start_server(print, "127.0.0.1", 0)
    kept.append(server)
""",
        "socket left open: *",
    ),
    "pipe": (
        """
import os

writing = []

async def test_leak():
    pipe = os.pipe()
    writing.append(pipe[1])
    await asyncio.get_running_loop().connect_read_pipe(asyncio.Protocol, open(pipe[0], "rb"))

@pytest.fixture(scope="module", autouse=True)
def hang_up():
    yield
    for pipe in writing:
        os.close(pipe)
""",
        "*unclosed *",
    ),
    "raw socket in a coroutine": (
        """
import socket
kept = []

async def test_leak():
    kept.append(socket.socket())
""",
        "socket left open: *",
    ),
    "unretrieved exception": (
        """
async def fault():
    raise ValueError("planted")

async def test_leak():
    task = asyncio.create_task(fault())
    while not task.done():
        await asyncio.sleep(0)
""",
        "error in an event loop: Task exception was never retrieved",
    ),
    "failing callback": (
        """
def fault():
    raise ValueError("planted")

async def test_leak():
    asyncio.get_running_loop().call_soon(fault)
    await asyncio.sleep(0)
""",
        "error in an event loop: *",
    ),
    "logging switched off earlier": (
        """
import logging.config

async def test_leak():
    logging.getLogger("asyncio").disabled = False
    asyncio.get_running_loop().call_exception_handler({"message": "planted"})
    logging.config.dictConfig({"version": 1})
    assert logging.getLogger("asyncio").disabled
""",
        "error in an event loop: planted",
    ),
}


@pytest.mark.parametrize(("source", "message"), PLANTED.values(), ids=PLANTED)
def test_what_a_coroutine_test_leaves_is_an_error(run: Run, source: str, message: str) -> None:
    result = run(source)
    result.assert_outcomes(passed=FLAVOURS, errors=FLAVOURS)
    result.stdout.fnmatch_lines([f"*{message}"])


PLANTED_SYNC = {
    "socket": (
        """
import socket
kept = []

def test_leak():
    kept.append(socket.socket())
""",
        "socket left open: *",
    ),
    "thread": (
        """
import threading
go = threading.Event()

def test_leak():
    threading.Thread(target=go.wait, name="planted").start()

@pytest.fixture(scope="module", autouse=True)
def let_it_end():
    yield
    go.set()
""",
        "thread left running: <Thread(planted, *",
    ),
    "child process": (
        """
import subprocess, sys
kept = []

def test_leak():
    kept.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE))

@pytest.fixture(scope="module", autouse=True)
def let_it_end():
    yield
    kept[0].communicate()
""",
        "child process left behind: *",
    ),
    "zombie": (
        """
import os
kept = []

def test_leak():
    pid = os.fork()
    if not pid:
        os._exit(0)
    kept.append(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

@pytest.fixture(scope="module", autouse=True)
def let_it_end():
    yield
    os.waitpid(kept[0], 0)
""",
        "child process left behind: *",
    ),
    "own loop": (
        """
def fault():
    raise ValueError("planted")

async def main():
    asyncio.get_running_loop().call_soon(fault)
    await asyncio.sleep(0)

def test_leak():
    asyncio.run(main())
""",
        "error in an event loop: *",
    ),
    "unraisable exception": (
        """
class Faulty:
    def __del__(self):
        raise ValueError("planted")

def test_leak():
    faulty = Faulty()
    faulty.itself = faulty
""",
        "*ValueError: planted*",
    ),
}


@pytest.mark.parametrize(("source", "message"), PLANTED_SYNC.values(), ids=PLANTED_SYNC)
def test_what_a_plain_test_leaves_is_an_error(run: Run, source: str, message: str) -> None:
    result = run(source)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines([f"*{message}"])


def test_a_forgotten_coroutine_is_a_failure(run: Run) -> None:
    result = run("async def test_forgetful():\n    asyncio.sleep(0)\n")
    result.assert_outcomes(failed=FLAVOURS)
    result.stdout.fnmatch_lines(["*coroutine 'sleep' was never awaited*"])


def test_a_job_in_a_thread_may_end_after_its_test(run: Run) -> None:
    """As the lookup of a name that was cancelled: what it has open is not left."""
    run("""
import socket, threading, time

def job(started):
    with socket.socket():
        started.set()
        time.sleep(0.3)

async def test_nobody_waits():
    started = threading.Event()
    asyncio.get_running_loop().run_in_executor(None, job, started)
    assert started.wait(20)
""").assert_outcomes(passed=FLAVOURS)


def test_only_the_guilty_test_fails(run: Run) -> None:
    result = run("""
import socket
kept = []

def test_guilty():
    kept.append(socket.socket())

def test_innocent():
    pass

async def test_innocent_too():
    pass
""")
    result.assert_outcomes(passed=2 + FLAVOURS, errors=1)
    result.stdout.fnmatch_lines(["ERROR *::test_guilty*"])


def test_loop_errors_may_be_expected(run: Run) -> None:
    run("""
@pytest.mark.allow_loop_errors
async def test_mark():
    asyncio.get_running_loop().call_exception_handler({"message": "planted"})

async def test_fixture(loop_errors):
    asyncio.get_running_loop().call_exception_handler({"message": "planted"})
    assert [record.message for record in loop_errors] == ["planted"]
""").assert_outcomes(passed=2 * FLAVOURS)


HUNG = {
    "waiting": "async def test_hung():\n    await asyncio.get_running_loop().create_future()",
    "spinning": "async def test_hung():\n    while True:\n        await asyncio.sleep(0)",
    "stubborn": """
async def test_hung():
    while True:
        try:
            await asyncio.sleep(0)
        except Exception:
            pass
""",
    "blocked": "import time\nasync def test_hung():\n    time.sleep(3600)",
}


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
@pytest.mark.parametrize("source", HUNG.values(), ids=HUNG)
def test_a_hung_coroutine_test_fails_with_stacks(run: Run, source: str) -> None:
    # Long enough for its setup, on a machine that is busy.
    result = run(f"pytestmark = pytest.mark.time_limit(1.5)\n{source}\n")
    assert result.parseoutcomes()["failed"] == FLAVOURS
    result.stdout.fnmatch_lines(["*call exceeded the time limit of 1.5 s", "*test_hung*"])


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
def test_hung_plain_tests_and_fixtures_fail(run: Run) -> None:
    result = run("""
import threading
short = pytest.mark.time_limit(1.5)

@short
def test_hung():
    threading.Event().wait()

@pytest.fixture
def hung_setup():
    threading.Event().wait()

@short
def test_setup(hung_setup):
    pass

@pytest.fixture
async def hung_teardown():
    yield
    await asyncio.get_running_loop().create_future()

@pytest.fixture
def finalizer_after():
    yield
    print("FINALIZED")

@short
def test_teardown(finalizer_after, hung_teardown):
    pass

def test_the_session_goes_on():
    pass
""")
    outcomes = result.parseoutcomes()
    assert (outcomes["failed"], outcomes["passed"]) == (1, 2)
    result.stdout.fnmatch_lines_random(
        [
            "*call exceeded the time limit*",
            "*setup exceeded the time limit*",
            "*teardown exceeded the time limit*",
            "FINALIZED",
        ]
    )


def test_time_limits_by_mark(run: Run) -> None:
    run("""
from conftest import time_limit

def test_default(request):
    assert time_limit(request.node) == 60

@pytest.mark.slow
def test_slow(request):
    assert time_limit(request.node) == 300
""").assert_outcomes(passed=2)


def test_the_watchdog_ends_a_process_that_cannot_be_interrupted(run: Run) -> None:
    result = run("""
import conftest, signal
conftest.LAST_RESORT = 0.3
pytestmark = pytest.mark.time_limit(1.5)

def test_hung():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    while True:
        pass
""")
    assert result.ret == 1
    result.stderr.fnmatch_lines(["Timeout (*", "*in test_hung"])


def test_tls_fixtures_trust_each_other(run: Run) -> None:
    run("""
@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
async def test_tls(server_ssl, client_ssl, name):
    async def handle(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(handle, "127.0.0.1", 0, ssl=server_ssl) as server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client_ssl, server_hostname=name
        )
        writer.write(b"a\\n")
        assert await reader.read() == b"a\\n"
        writer.close()
        await writer.wait_closed()
""").assert_outcomes(passed=2 * FLAVOURS)
