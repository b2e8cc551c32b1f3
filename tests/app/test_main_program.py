"""Ways to start a server: where its code is, and how workers find it."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from app_kit import TOY, App, until

SCRIPT = """
import logging, os, sys
from pulsar_client import DelimitedDecoder, ProtocolConsumer, SocketServer

class Pid(ProtocolConsumer):
    def __init__(self, prefix=""):
        super().__init__()
        self.decoder = DelimitedDecoder(b"\\n", max_size=100)
        self.prefix = prefix

    def data_received(self, data):
        line, rest = self.decoder.decode(data)
        if line is not None:
            self.write(f"{self.prefix}{os.getpid()}\\n".encode())
            self.finished()
        return rest
"""


@pytest.mark.parametrize("guarded", [True, False], ids=["guard", "no guard"])
def test_a_script_with_its_own_class(guarded: bool, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    guard = 'if __name__ == "__main__":\n    ' if guarded else ""
    script.write_text(SCRIPT + guard + "SocketServer(Pid).start()\n")
    with App("-w", "2", program=(str(script),)).ready() as app:
        assert int(app.ask("x")) in app.workers()
        assert app.stop()[0] == 0


def test_a_program_on_the_command_line() -> None:
    with App("-w", "1", program=("-c", SCRIPT + "SocketServer(Pid).start()")).ready() as app:
        assert int(app.ask("x")) in app.workers()
        assert app.stop()[0] == 0


def test_a_partial_is_found_and_a_lambda_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    start = "from functools import partial\nSocketServer(partial(Pid, 'pid ')).start()\n"
    script.write_text(SCRIPT + start)
    with App("-w", "1", program=(str(script),)).ready() as app:
        assert app.ask("x").startswith("pid ")
        assert app.stop()[0] == 0
    script.write_text(SCRIPT + "SocketServer(lambda: Pid()).start()\n")
    with App("-w", "1", program=(str(script),)) as app:
        assert app.wait() == 3
        app.wait_line("could not start: workers are fresh interpreters, and .* can't be found")
    with App("-w", "1", program=(str(script),), concurrency="thread").ready() as app:
        assert int(app.ask("x")) == app.pid
        assert app.stop()[0] == 0


def test_the_logging_of_the_application_is_kept(tmp_path: Path) -> None:
    """What a script configures at its top level holds in workers too."""
    script = tmp_path / "script.py"
    own = "logging.basicConfig(format='mine: %(message)s', level='INFO')\n"
    say = "logging.info('imported by %d', os.getpid())\n"
    script.write_text(SCRIPT + own + say + "SocketServer(Pid).start()\n")
    with App("-w", "1", program=(str(script),)).ready() as app:
        app.wait_line("mine: listening on tcp://")
        (worker,) = app.workers()
        app.wait_line(f"mine: imported by {worker}")
        assert app.stop()[0] == 0


def serve(path: str) -> None:
    """Run in a process of multiprocessing."""
    from examples.echo import EchoServerProtocol
    from pulsar_client import SocketServer

    SocketServer(
        EchoServerProtocol, load_config=False, bind=f"unix:{path}", workers=1, status_socket=None
    ).start()


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_server_within_a_process_of_multiprocessing(method: str, tmp_path: Path) -> None:
    if method == "fork" and sys.version_info >= (3, 12):
        pytest.skip("a fork of a process with threads warns")
    path = tmp_path / "socket"
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=serve, args=(str(path),))
    process.start()
    try:
        until(path.exists)
        assert process.pid is not None
        until(lambda: serving(path))
        os.kill(process.pid, signal.SIGTERM)
        process.join(30)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()


def serving(path: Path) -> bool:
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        try:
            sock.connect(str(path))
        except ConnectionRefusedError:
            return False  # bound, and does not listen yet
        sock.sendall(b"on\r\n\r\n")
        return sock.recv(100) == b"on\r\n\r\n"


def test_arguments_of_the_program_reach_the_workers() -> None:
    with App("-w", "1", program=(str(TOY),)).ready() as app:
        assert "-w 1" in app.ask("arguments")
        assert app.stop()[0] == 0
