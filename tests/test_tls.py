"""TLS contexts: what they check by default, and that a wrong file is named."""

import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from pulsar_client import tls
from pulsar_client.exceptions import ConfigError
from pulsar_client.tls import client_context, server_context

PASSWORD = "correct horse"


class Files:
    """PEM files of one authority and what it issued."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        self.ca = self.write("ca.pem", self.authority.cert_pem.bytes())
        issued = self.authority.issue_cert("server.example")
        certificate = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        self.key_pem = issued.private_key_pem.bytes()
        self.cert = self.write("cert.pem", certificate)
        self.key = self.write("key.pem", self.key_pem)
        self.both = self.write("both.pem", issued.private_key_and_cert_chain_pem.bytes())
        other = self.authority.issue_cert("other.example")
        self.other_key = self.write("other-key.pem", other.private_key_pem.bytes())
        self.missing = str(directory / "missing.pem")
        self.text = self.write("text.pem", b"not a certificate at all\n")

    def write(self, name: str, content: bytes) -> str:
        path = self.directory / name
        path.write_bytes(content)
        return str(path)

    def encrypted_key(self) -> str:
        from cryptography.hazmat.primitives import serialization

        key = serialization.load_pem_private_key(self.key_pem, password=None)
        return self.write(
            "encrypted-key.pem",
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(PASSWORD.encode()),
            ),
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


def shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str = "server.example"
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Connect two contexts in memory; gives the sides of the client and the server."""
    upward, downward = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(downward, upward, server_hostname=name)
    theirs = server.wrap_bio(upward, downward, server_side=True)
    waiting = [ours, theirs]
    while waiting:
        side = waiting.pop(0)
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(side)
    # In TLS 1.3 the server judges the client's certificate after the client is done.
    with pytest.raises(ssl.SSLWantReadError):
        ours.read(1)
    return ours, theirs


@pytest.mark.parametrize("form", [str, Path])
@pytest.mark.parametrize("together", [False, True])
def test_handshake(files: Files, form: Any, together: bool) -> None:
    if together:
        server = server_context(form(files.both))
    else:
        server = server_context(form(files.cert), form(files.key))
    client = client_context(ca_file=form(files.ca))
    ours, theirs = shake_hands(server, client)
    assert ours.version() == "TLSv1.3"
    assert ours.getpeercert()
    assert theirs.getpeercert() is None


def test_defaults_verify_certificate_and_name(files: Files) -> None:
    client = client_context()
    assert client.verify_mode == ssl.CERT_REQUIRED
    assert client.check_hostname is True
    assert client.minimum_version == ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server_context(files.both), client)


def test_the_host_name_is_checked(files: Files) -> None:
    server, client = server_context(files.both), client_context(ca_file=files.ca)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"wrong\.example"):
        shake_hands(server, client, "wrong.example")


@pytest.mark.parametrize("with_ca", [False, True])
def test_without_verification(files: Files, with_ca: bool) -> None:
    client = client_context(verify=False, ca_file=files.ca if with_ca else None)
    assert client.verify_mode == ssl.CERT_NONE
    shake_hands(server_context(files.both), client, "wrong.example")


def test_only_the_given_authority_is_trusted(files: Files) -> None:
    assert len(client_context(ca_file=files.ca).get_ca_certs()) == 1


def test_a_server_that_wants_client_certificates(files: Files) -> None:
    server = server_context(files.both, ca_file=files.ca)
    assert server.verify_mode == ssl.CERT_REQUIRED
    client = client_context(ca_file=files.ca, cert_file=files.cert, key_file=files.key)
    _, theirs = shake_hands(server, client)
    assert theirs.getpeercert()
    client = client_context(ca_file=files.ca)
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate"):
        shake_hands(server, client)


def test_minimum_version(files: Files) -> None:
    assert server_context(files.both).minimum_version == ssl.TLSVersion.TLSv1_2
    server = server_context(files.both, minimum_version=ssl.TLSVersion.TLSv1_3)
    assert server.minimum_version == ssl.TLSVersion.TLSv1_3
    client = client_context(ca_file=files.ca)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)version|protocol"):
        shake_hands(server, client)


def test_alpn(files: Files) -> None:
    server = server_context(files.both, alpn=("h2", "http/1.1"))
    client = client_context(ca_file=files.ca, alpn=["http/1.1", "h2"])
    ours, theirs = shake_hands(server, client)
    assert ours.selected_alpn_protocol() == theirs.selected_alpn_protocol() == "h2"
    ours, _ = shake_hands(server, client_context(ca_file=files.ca))
    assert ours.selected_alpn_protocol() is None


@pytest.mark.parametrize(
    ("alpn", "error"),
    [
        ("h2", TypeError),
        (b"h2", TypeError),
        ([b"h2"], TypeError),
        ([""], ValueError),
        (["é"], ValueError),
        (["x" * 256], ValueError),
    ],
)
def test_bad_alpn(alpn: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="alpn") as caught:
        client_context(alpn=alpn)
    shown = alpn if isinstance(alpn, (str, bytes)) else alpn[0]
    assert repr(shown) in str(caught.value)


# Files


@pytest.mark.parametrize("parameter", ["cert_file", "key_file", "ca_file"])
@pytest.mark.parametrize("side", [server_context, client_context])
def test_a_missing_file_is_named(files: Files, parameter: str, side: Any) -> None:
    arguments = {"cert_file": files.cert, "key_file": files.key, "ca_file": files.ca}
    arguments[parameter] = files.missing
    with pytest.raises(ConfigError) as caught:
        side(**arguments)
    text = str(caught.value)
    assert text.startswith(f"{parameter} {files.missing!r} can't be read (No such file")
    assert "must be a file with" in text
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize("parameter", ["cert_file", "key_file", "ca_file"])
@pytest.mark.parametrize("side", [server_context, client_context])
def test_a_file_of_another_kind_is_named(files: Files, parameter: str, side: Any) -> None:
    arguments = {"cert_file": files.cert, "key_file": files.key, "ca_file": files.ca}
    arguments[parameter] = files.text
    with pytest.raises(ConfigError, match=f"{parameter} .*text.pem' must be .* PEM") as caught:
        side(**arguments)
    assert repr(files.text) in str(caught.value)


def test_a_directory(files: Files) -> None:
    with pytest.raises(ConfigError, match=r"cert_file .*can't be read .*directory") as caught:
        server_context(files.directory)
    assert isinstance(caught.value.__cause__, IsADirectoryError)


def test_a_path_with_a_nul() -> None:
    with pytest.raises(ConfigError, match=r"cert_file 'a\\x00b' can't be read .*null"):
        server_context("a\0b")


def test_the_key_is_in_neither_file(files: Files) -> None:
    with pytest.raises(ConfigError, match=r"cert_file .*private key .*key_file is None"):
        server_context(files.cert)


def test_a_key_that_does_not_match(files: Files) -> None:
    with pytest.raises(ConfigError, match="does not match the certificate") as caught:
        server_context(files.cert, files.other_key)
    assert f"key_file {files.other_key!r}" in str(caught.value)
    assert f"cert_file {files.cert!r}" in str(caught.value)


def test_a_key_without_a_certificate(files: Files) -> None:
    with pytest.raises(ConfigError, match=r"key_file .*needs a cert_file") as caught:
        client_context(key_file=files.key)
    assert repr(files.key) in str(caught.value)


@pytest.mark.parametrize("damaged", ["cert_file", "key_file"])
def test_damaged_content(files: Files, damaged: str) -> None:
    arguments = {"cert_file": files.cert, "key_file": files.key}
    head, _, tail = Path(arguments[damaged]).read_bytes().partition(b"-----\n")
    arguments[damaged] = files.write("damaged.pem", head + b"-----\nAAAA" + tail[9:])
    with pytest.raises(ConfigError, match=r"damaged\.pem' .*is damaged"):
        server_context(arguments["cert_file"], arguments["key_file"])


def test_damaged_authorities(files: Files) -> None:
    marker = b"CERTIFICATE-----\n"
    broken = files.write("broken.pem", b"-----BEGIN " + marker + b"AAAA\n-----END " + marker)
    with pytest.raises(ConfigError, match=r"ca_file .*broken\.pem' is damaged"):
        client_context(ca_file=broken)


# Passwords


@pytest.mark.parametrize("password", [PASSWORD, PASSWORD.encode()])
def test_an_encrypted_key(files: Files, password: Any) -> None:
    key = files.encrypted_key()
    server = server_context(files.cert, key, password=password)
    client = client_context(
        ca_file=files.ca, cert_file=files.cert, key_file=key, password=password
    )
    shake_hands(server, client)


@pytest.mark.parametrize("side", [server_context, client_context])
def test_an_encrypted_key_without_a_password(files: Files, side: Any) -> None:
    """Nobody is asked at the terminal: a server would hang there."""
    key = files.encrypted_key()
    with pytest.raises(ConfigError, match="is encrypted: it needs a password") as caught:
        side(cert_file=files.cert, key_file=key)
    assert f"key_file {key!r}" in str(caught.value)


def test_a_wrong_password_is_not_shown(files: Files) -> None:
    key = files.encrypted_key()
    with pytest.raises(ConfigError, match="can't be read with the password given") as caught:
        server_context(files.cert, key, password="battery staple")
    assert f"key_file {key!r}" in str(caught.value)
    assert "battery" not in str(caught.value)


# Other arguments


@pytest.mark.parametrize("bad", [None, 5, b"cert.pem"])
def test_a_path_of_a_wrong_type(bad: Any) -> None:
    with pytest.raises(TypeError, match="cert_file must be the path") as caught:
        server_context(bad)
    assert repr(bad) in str(caught.value)


def test_an_interpreter_without_ssl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "ssl", None)
    with pytest.raises(ConfigError, match="ssl module"):
        client_context()
    with pytest.raises(ConfigError, match="ssl module"):
        server_context("cert.pem")
