"""Sockets, TLS, users, service managers, and what is seen from outside."""

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import trustme
from app_kit import LIMIT, LONGER_THAN_HELD_UP, ROOT, App, ask, until

from pulsar_client.app.status_command import read_status

MODES = pytest.mark.parametrize("concurrency", ["process", "thread"])
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


@pytest.mark.parametrize("workers", ["1", "8"])
@MODES
def test_p29_every_interface_of_both_families(workers: str, concurrency: str) -> None:
    """P29, A13: the same port for both, whatever the number of workers."""
    if concurrency == "thread" and workers == "8":
        pytest.skip("one process")
    with App("-w", workers, bind=":0", concurrency=concurrency).ready() as app:
        app.wait_line("listening on", count=2)
        urls = re.findall(r"listening on (\S+)", app.text())
        port = app.address[1]
        assert urls == [f"tcp://0.0.0.0:{port}", f"tcp://[::]:{port}"]
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port), LIMIT) as sock:
                assert ask(sock, "echo on") == "on"
        assert app.stop()[0] == 0


@MODES
def test_several_addresses(concurrency: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    bind = f"127.0.0.1:0,[::1]:0,unix:{path}"
    with App("-w", "2", bind=bind, concurrency=concurrency).ready() as app:
        app.wait_line("listening on", count=3)
        assert app.ask("echo on") == "on"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            assert ask(sock, "echo on") == "on"
        assert app.stop()[0] == 0
        assert not path.exists()


@MODES
def test_a13_an_address_in_use(concurrency: str) -> None:
    """A13, P10: exit code 3, nothing is left."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        with App("-w", "2", bind=bind, concurrency=concurrency) as app:
            assert app.wait() == 3
            app.wait_line("could not start: .*ddress already in use")


@MODES
def test_p28_files_of_unix_sockets(concurrency: str, tmp_path: Path) -> None:
    """P28: mode and owner; a stale file is replaced, one that answers is not."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    owner = ["--unix-owner", "nobody:0"] if os.getuid() == 0 else []
    bind = f"unix:{path}"
    arguments = ["-w", "1", "--unix-mode", "0640", *owner]
    with App(*arguments, bind=bind, concurrency=concurrency).ready() as app:
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        if owner:
            import pwd

            assert path.stat().st_uid == pwd.getpwnam("nobody").pw_uid
        with App("-w", "1", bind=bind, concurrency=concurrency) as second:
            assert second.wait() == 3
            second.wait_line("another process answers on it")
        assert app.ask("echo on") == "on"
        assert app.stop()[0] == 0


@root_only
@MODES
def test_p28_rights_are_given_up(concurrency: str, tmp_path: Path) -> None:
    """P28: groups, group and user, and workers can't get them back."""
    import pwd

    for directory in (*ROOT.parents, ROOT, Path(sys.executable).parent):
        if not directory.stat().st_mode & stat.S_IXOTH:
            pytest.skip(f"{directory} is closed to other users, who can't run a program in it")
    nobody = pwd.getpwnam("nobody")
    arguments = ["-w", "1", "--user", "nobody", "--group", str(nobody.pw_gid)]
    with App(*arguments, concurrency=concurrency).ready() as app:
        assert app.ask("who") == f"{nobody.pw_uid} {nobody.pw_gid} [{nobody.pw_gid}]"
        assert app.stop()[0] == 0


def test_umask_and_pidfile(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    arguments = ["-w", "1", "--pidfile", str(pidfile), "--umask", "0027"]
    with App(*arguments).ready() as app:
        assert int(pidfile.read_text()) == app.pid
        assert stat.S_IMODE(pidfile.stat().st_mode) == 0o640
        with App(*arguments) as second:
            assert second.wait() == 3
            second.wait_line(f"pidfile .* names process {app.pid}, which runs")
        assert app.stop()[0] == 0
    assert not pidfile.exists()


# -- TLS -------------------------------------------------------------------------------------


def write_pair(directory: Path, ca: trustme.CA, name: str = "localhost") -> list[str]:
    certificate = ca.issue_cert(name)
    cert, key = directory / "cert.pem", directory / "key.pem"
    cert.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    return ["--cert-file", str(cert), "--key-file", str(key)]


def serial(app: App, client: ssl.SSLContext) -> str:
    with client.wrap_socket(app.connect(), server_hostname="localhost") as sock:
        assert ask(sock, "echo on") == "on"
        found = sock.getpeercert()
        assert found is not None
        return str(found["serialNumber"])


@MODES
def test_p26_p27_tls_and_new_certificates(
    concurrency: str, tmp_path: Path, ca: trustme.CA, client_ssl: ssl.SSLContext
) -> None:
    """P26, P27, P34: HUP takes new files over; a bad pair keeps the old one."""
    files = write_pair(tmp_path, ca)
    arguments = [*files, "-w", "1", "--alpn", "toy"]
    # A reload is over when the old worker accepts no more, however late that one is.
    env = {"TOY_CONSTANTS": "handover._PATIENCE=60"}
    with App(*arguments, concurrency=concurrency, env=env).ready() as app:
        assert app.url.startswith("tls://")
        first = serial(app, client_ssl)
        with client_ssl.wrap_socket(app.connect(), server_hostname="localhost") as sock:
            assert sock.version() in ("TLSv1.2", "TLSv1.3")
        Path(files[3]).write_text("garbage")
        app.kill(signal.SIGHUP)
        app.wait_line("reload failed, nothing is changed: key_file .* must be a file with")
        assert serial(app, client_ssl) == first
        if concurrency == "process":
            # Also for a worker that starts while the files are bad.
            os.kill(min(app.workers()), signal.SIGKILL)
            assert serial(app, client_ssl) == first
        write_pair(tmp_path, ca)
        app.kill(signal.SIGHUP)
        app.wait_line("reloaded")
        assert serial(app, client_ssl) != first
        assert app.stop()[0] == 0


@MODES
def test_p26_client_certificates_alpn_and_the_oldest_version(
    concurrency: str, tmp_path: Path, ca: trustme.CA
) -> None:
    """P26, P34."""
    files = write_pair(tmp_path, ca)
    authority = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(authority))
    arguments = ["--ca-file", str(authority), "--tls-minimum", "1.3", "--alpn", "other,toy"]
    with App(*files, *arguments, "-w", "1", concurrency=concurrency).ready() as app:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ca.configure_trust(client)
        client.set_alpn_protocols(["toy"])
        # In TLS 1.3 the client learns that it is refused only after its own handshake.
        with client.wrap_socket(app.connect(), server_hostname="localhost") as sock:
            try:
                assert ask(sock, "echo on") == ""
            except OSError:
                pass
        ca.issue_cert("client@localhost").configure_cert(client)
        with client.wrap_socket(app.connect(), server_hostname="localhost") as sock:
            assert (sock.version(), sock.selected_alpn_protocol()) == ("TLSv1.3", "toy")
            assert ask(sock, "echo on") == "on"
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            client.wrap_socket(app.connect(), server_hostname="localhost")
        assert app.stop()[0] == 0


# -- service managers ------------------------------------------------------------------------


def test_p30_sockets_of_a_service_manager(tmp_path: Path) -> None:
    """Socket activation: the sockets are used, kept over a reload, and bind is left alone."""
    path = tmp_path / "socket"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen()
        # Sockets at 3 and 4, and the variables with the pid of the process itself.
        script = (
            f"exec 3<&{tcp.fileno()} 4<&{unix.fileno()}; "
            'LISTEN_PID=$$ LISTEN_FDS=2; export LISTEN_PID LISTEN_FDS; exec "$0" "$@"'
        )
        fds = (tcp.fileno(), unix.fileno())
        prefix = ("bash", "-c", script)
        with App("-w", "2", bind="127.0.0.1:1", prefix=prefix, pass_fds=fds).ready() as app:
            assert app.address == tcp.getsockname()
            assert app.ask("echo on") == "on"
            app.kill(signal.SIGHUP)
            app.wait_line("reloaded")
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                assert ask(sock, "echo on") == "on"
            assert app.stop()[0] == 0
    assert path.exists()  # it is the service manager's


def test_p30_readiness_is_told(tmp_path: Path) -> None:
    # The system keeps ten messages for a manager that does not read: the one a second that says
    # that all is well leaves room for the others.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(LIMIT)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
        with App("-w", "1", env=env) as app:
            told = b""
            while b"READY=1" not in told:
                told = manager.recv(1000)
            app.wait_line("listening on")
            while b"WATCHDOG=1" not in told:
                told = manager.recv(1000)
            app.kill(signal.SIGHUP)
            while b"RELOADING=1\nMONOTONIC_USEC=" not in told:
                told = manager.recv(1000)
            while b"READY=1" not in told:
                told = manager.recv(1000)
            app.kill()
            while b"STOPPING=1" not in told:
                told = manager.recv(1000)
            assert app.wait() == 0


# -- seen from outside -----------------------------------------------------------------------


@MODES
def test_a15_status_over_a_private_socket(concurrency: str, tmp_path: Path) -> None:
    """A15, P34: mode 0600, JSON; nothing that is sent there is even read."""
    path = tmp_path / "status"
    arguments = ["-w", "2", "--status-socket", str(path)]
    with App(*arguments, concurrency=concurrency).ready() as app, app.connect() as kept:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert ask(kept, "echo on") == "on"
        app.ask("boom")

        def seen() -> bool:
            clients = read_status(path)["clients"]
            return (clients["requests"], clients["errors"], clients["connections"]) == (2, 1, 1)

        until(seen, what="the numbers of the worker")
        info = read_status(path)
        assert info["server"]["state"] == "serving"
        assert info["server"]["addresses"] == [app.url]
        worker = info["workers"][0]
        assert worker["state"] == "ready"
        assert worker["memory"] is None or worker["memory"] > 2**20
        assert 0 <= worker["lag"] < 60
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            with contextlib.suppress(BrokenPipeError):  # it may be done with us already
                sock.sendall(b"cos\nsystem\n(S'exit 1'\ntR.")
            with sock.makefile("rb") as stream:
                assert json.loads(stream.readline())["server"]["pid"] == app.pid
        shown = subprocess.run(
            [sys.executable, "-W", "error", "-m", "pulsar_client", "status", str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert re.match(rf"toy \(pid {app.pid}\) serving for \d+ s on {app.url}\n", shown)
        assert "  1 connections, 2 accepted, 2 requests, 1 errors\n" in shown
        assert app.stop()[0] == 0
    assert not path.exists()


@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["text", "JSON"])
def test_the_reader_of_the_status_may_go(arguments: list[str], tmp_path: Path) -> None:
    """As ``head -1`` does: no traceback."""
    path = tmp_path / "status"
    with App("-w", "1", "--status-socket", str(path)).ready() as app:
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb") as gone:
            done = subprocess.run(
                [sys.executable, "-m", "pulsar_client", "status", *arguments, str(path)],
                cwd=ROOT,
                stdout=gone,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert (done.returncode, done.stderr) == (0, "")
        assert app.stop()[0] == 0


def test_restarts_are_counted_by_cause(tmp_path: Path) -> None:
    path = tmp_path / "status"
    arguments = ["-w", "1", "--status-socket", str(path), "--timeout", LONGER_THAN_HELD_UP]
    with App(*arguments).ready() as app:
        assert app.ask("die") == ""
        app.wait_line("ended with exit code 7")
        with app.connect() as sock:
            sock.sendall(b"block 60\n")
            app.wait_line("killed by SIGABRT")
        until(lambda: len(read_status(path)["workers"]) == 1)
        assert read_status(path)["server"]["restarts"] == {"ended with exit code 7": 1, "stuck": 1}
        assert app.stop()[0] == 0


def test_the_status_of_nobody(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pulsar_client", "status", str(tmp_path / "none")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no server answers on" in done.stderr


def test_metrics_and_probes() -> None:
    arguments = ["-w", "1", "--prometheus-bind", "127.0.0.1:0"]
    with App(*arguments).ready() as app, app.connect() as kept:
        url = app.wait_line(r"metrics on (http://\S+)/metrics")[1]
        assert ask(kept, "echo on") == "on"

        def get(path: str) -> str:
            with urllib.request.urlopen(url + path, timeout=LIMIT) as reply:
                return str(reply.read().decode())

        until(lambda: "\npulsar_requests_total 1\n" in get("/metrics"))
        text = get("/metrics")
        assert "# TYPE pulsar_requests_total counter\n" in text
        assert 'pulsar_workers{state="ready"} 1\n' in text
        pid = min(app.workers())
        assert f'pulsar_worker_connections{{worker="0",pid="{pid}"}} 1\n' in text
        assert get("/livez") == "alive\n"
        assert get("/readyz") == "1 workers are ready\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get("/")
        assert app.stop()[0] == 0


def test_an_address_of_the_metrics_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        with App("-w", "1", "--prometheus-bind", bind) as app:
            assert app.wait() == 3
            app.wait_line(f"could not start: prometheus_bind '{bind}'")
