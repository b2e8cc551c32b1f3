"""Settings: where they come from, what they take, and what is said of wrong ones."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from app_kit import LIMIT, ROOT, TOY

from pulsar_client import ConfigError, Connection, ProtocolConsumer, SocketServer
from pulsar_client.app.configuration import load
from pulsar_client.app.settings import GROUPS, Settings, registry
from pulsar_client.app.settings_reference import reference


def start(
    *arguments: str, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PULSAR_")}
    return subprocess.run(
        [sys.executable, "-W", "error", TOY, *arguments],
        cwd=ROOT,
        env={**clean, "PYTHONPATH": str(ROOT)} | (env or {}),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def settings(**sources: Any) -> Settings:
    return load(sources.pop("params", {}), **sources).settings


def test_p33_the_sources_rank_in_order(tmp_path: Path) -> None:
    """P33: defaults, file, environment, command line; what code gives are the defaults."""
    config = tmp_path / "c.toml"
    config.write_text("workers = 3\nkeep_alive = 3\ntimeout = 3\n")
    found = load(
        {"workers": 2, "keep_alive": 2, "timeout": 2, "backlog": 2},
        environ={"PULSAR_KEEP_ALIVE": "4", "PULSAR_TIMEOUT": "4", "OTHER": "x"},
        arguments=["--timeout", "5", "-c", str(config)],
    )
    assert (found.settings.workers, found.origins["workers"]) == (3, str(config))
    assert found.settings.keep_alive == 4
    assert found.origins["keep_alive"] == "environment variable PULSAR_KEEP_ALIVE"
    assert (found.settings.timeout, found.origins["timeout"]) == (5, "command line --timeout")
    assert (found.settings.backlog, found.origins["backlog"]) == (2, "code")
    assert (found.settings.max_requests, found.origins["max_requests"]) == (0, "default")


def test_p33_check_config_prints_all_and_where_it_came_from(tmp_path: Path) -> None:
    """P33."""
    config = tmp_path / "c.py"
    config.write_text("import os\nworkers = len([1, 2])\n_private = 1\n\ndef unused(): ...\n")
    done = start(
        "--check-config", "-c", str(config), "-b", ":0,unix:/x", env={"PULSAR_UMASK": "027"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(" = ", 1) for line in done.stdout.splitlines())
    assert list(lines) == [setting.name for setting in registry()]
    assert lines["workers"].split() == ["2", "#", str(config)]
    assert lines["bind"].split() == [":0,unix:/x", "#", "command", "line", "--bind"]
    assert lines["umask"].split() == ["0027", "#", "environment", "variable", "PULSAR_UMASK"]
    assert lines["backlog"].split() == ["2048", "#", "default"]


@pytest.mark.parametrize(
    ("arguments", "env", "file", "words"),
    [
        (["--workers", "0"], {}, "", ["--workers is '0'", "from 1 to 1000"]),
        (["--workers", "two"], {}, "", ["--workers is 'two'", "an integer"]),
        (["--bind", "nowhere"], {}, "", ["--bind is 'nowhere'", "HOST:PORT"]),
        (["--timeout", "-1"], {}, "", ["--timeout is '-1'", "at least 0"]),
        (["--timeout", "nan"], {}, "", ["--timeout is 'nan'"]),
        (["--loop", "trio"], {}, "", ["--loop is 'trio'", "one of auto, asyncio, uvloop"]),
        (["--umask", "999"], {}, "", ["--umask is '999'", "octal"]),
        ([], {"PULSAR_BACKLOG": "many"}, "", ["PULSAR_BACKLOG is 'many'"]),
        ([], {"PULSAR_WORKER": "1"}, "", ["PULSAR_WORKER", "did you mean workers?"]),
        ([], {}, "workers = '2x'\n", ["workers is '2x'"]),
        ([], {}, "worker = 2\n", ["'worker'", "did you mean workers?"]),
        ([], {}, "keep-alive = 2\n", ["'keep-alive'", "did you mean keep_alive?"]),
        ([], {}, "workers = true\n", ["workers is True"]),
        ([], {}, "umask = 22\n", ["umask is 22", "octal digits in quotes"]),
        ([], {}, "workers = \n", ["can't be read"]),
        ([], {}, "config = 'other'\n", ["config can't be set in a config file"]),
        (["-c", "/nowhere.toml"], {}, "", ["config is '/nowhere.toml'", "No such file"]),
    ],
)
def test_p33_what_is_wrong_is_said(
    arguments: list[str], env: dict[str, str], file: str, words: list[str], tmp_path: Path
) -> None:
    """P33, A13: an error names the key, the value and what is allowed."""
    if file:
        (tmp_path / "c.toml").write_text(file)
        arguments = ["-c", str(tmp_path / "c.toml")]
    with pytest.raises(ConfigError) as caught:
        load({}, arguments=arguments, environ=env)
    assert not [word for word in words if word not in str(caught.value)]


def test_wrong_use_is_exit_code_2() -> None:
    for arguments, env in (
        (["--workers", "none"], {}),
        (["--no-such-flag"], {}),
        (["--work", "2"], {}),
        ([], {"PULSAR_BOGUS": "1"}),
    ):
        done = start(*arguments, env=env)
        assert (done.returncode, done.stdout) == (2, "")
        assert "error: " in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cert-file", "c.pem"], "cert_file is 'c.pem' and key_file none: TLS needs both"),
        (["--key-file", "k.pem"], "key_file is 'k.pem' and cert_file none: TLS needs both"),
        (["--ca-file", "a.pem"], "ca_file is 'a.pem', which needs cert_file and key_file"),
    ],
    ids=["certificate", "key", "authorities"],
)
def test_p33_check_config_refuses_half_of_tls(arguments: list[str], words: str) -> None:
    """P33: it says what a start would say."""
    done = start("--check-config", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"python toy_server.py: error: {words}\n"


def test_p33_one_file_may_have_certificate_and_key() -> None:
    """P33: it is named twice; the file itself is read when the server starts."""
    done = start("--check-config", "--cert-file", "both.pem", "--key-file", "both.pem")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_help_shows_everything() -> None:
    done = start("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python toy_server.py [-h] ")
    for setting in registry():
        assert setting.flag in done.stdout
    for group in GROUPS:
        assert f"\n{group}:\n" in done.stdout


def test_bad_parameters_in_code() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'worker'; did you mean workers\?"):
        SocketServer(list, worker=2)
    with pytest.raises(ConfigError, match="workers is 0, expected an integer from 1 to 1000"):
        SocketServer(list, workers=0)
    with pytest.raises(TypeError, match="callable is None"):
        SocketServer()
    with pytest.raises(TypeError, match="callable is 3"):
        SocketServer(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"makes a connection, expected .* ProtocolConsumer"):
        SocketServer(partial(Connection, ProtocolConsumer, pipeline=16))


def test_none_takes_back_what_a_file_sets(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("pidfile = '/run/x'\nalpn = ['h2', 'http/1.1']\n")
    found = settings(arguments=["-c", str(config), "--pidfile", "none"])
    assert found.pidfile is None
    assert found.alpn == ("h2", "http/1.1")


def test_the_environment_can_name_the_file(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("workers = 7\n")
    assert settings(environ={"PULSAR_CONFIG": str(config)}).workers == 7


def test_a_config_file_that_raises(tmp_path: Path) -> None:
    config = tmp_path / "c.py"
    config.write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=r"c\.py can't be read: ZeroDivisionError"):
        settings(arguments=["-c", str(config)])


@pytest.mark.parametrize("setting", list(registry()), ids=lambda setting: setting.name)
def test_every_setting_reads_what_it_shows(setting: Any) -> None:
    text = setting.kind.show(setting.default)
    assert setting.kind.read(text) == setting.default
    assert setting.group in GROUPS
    assert setting.help.endswith(".")


def test_start_says_where_it_can_not_be_called() -> None:
    import asyncio
    import threading

    async def in_a_loop() -> None:
        SocketServer(list, load_config=False).start()

    with pytest.raises(RuntimeError, match="while an event loop runs"):
        asyncio.run(in_a_loop())
    caught: list[BaseException] = []

    def in_a_thread() -> None:
        try:
            SocketServer(list, load_config=False).start()
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


def test_the_reference_is_made_from_the_settings() -> None:
    """docs/settings.md is what ``python -m pulsar_client.app.settings_reference`` prints."""
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == reference()
