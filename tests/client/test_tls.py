"""TLS of both clients: authorities, certificates, and names."""

import subprocess
from contextlib import contextmanager

import grpc
import pytest

from instantid_client import (
    TLS,
    InstantIDClient,
    Unreachable,
)
from tests.client.conftest import serve


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, and a key and certificate for a server and for a client, in PEM form."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "rsa:2048", "-noenc", "-days", "2"]
    openssl("req", "-x509", *key, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=DNS:localhost"]
        openssl("req", "-x509", *key, "-subj", f"/CN={name}", *signed, "-keyout", f"{name}.key", "-out", f"{name}.pem")
    return folder


@contextmanager
def secure(recorder, folder, mutual):
    pair = [((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())]
    authority = (folder / "ca.pem").read_bytes() if mutual else None
    server, port = serve(recorder, grpc.ssl_server_credentials(pair, authority, mutual))
    yield f"localhost:{port}"
    server.stop(None)


def test_tls_trusts_the_authority_that_is_named(call, recorder, certificates):
    with secure(recorder, certificates, mutual=False) as url:
        call.generate(url, client={"tls": TLS(certificates / "ca.pem")})
        assert recorder.requests
        with pytest.raises(Unreachable) as caught:
            call.generate(url, client={"tls": TLS()})
        assert not caught.value.sent
        with pytest.raises(Unreachable):
            call.generate(url)


def test_mutual_tls_shows_the_client_s_certificate(call, recorder, certificates):
    own = TLS(str(certificates / "ca.pem"), certificates / "client.key", certificates / "client.pem")
    with secure(recorder, certificates, mutual=True) as url:
        call.generate(url, client={"tls": own})
        assert recorder.requests
        with pytest.raises(Unreachable):
            call.generate(url, client={"tls": TLS(certificates / "ca.pem")})


def test_a_name_other_than_the_certificate_s_is_an_option_of_the_channel(call, recorder, certificates):
    with secure(recorder, certificates, mutual=False) as url:
        address = url.replace("localhost", "127.0.0.1")
        name = {"grpc.ssl_target_name_override": "localhost"}
        call.generate(address, client={"tls": TLS(certificates / "ca.pem"), "channel_options": name})
        with pytest.raises(Unreachable):
            call.generate(address, client={"tls": TLS(certificates / "ca.pem")})


def test_a_missing_certificate_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        InstantIDClient(tls=TLS(tmp_path / "missing.pem"))
