"""What the command `instantid` says of connections that cannot work, and how it ends when interrupted."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import grpc

from tests.client.conftest import serve

from .test_command import run


@contextmanager
def tls_server(recorder, folder):
    key = ["-newkey", "rsa:2048", "-noenc", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "own.pem"]
    subprocess.run(["openssl", "req", "-x509", *key, *names], cwd=folder, check=True, capture_output=True)
    pair = (folder / "key.pem").read_bytes(), (folder / "own.pem").read_bytes()
    server, port = serve(recorder, grpc.ssl_server_credentials([pair]))
    yield f"localhost:{port}"
    server.stop(None)


def hint(*arguments):
    done = run("health", *arguments)
    assert done.exit_code == 1
    assert "Traceback" not in done.output
    return done.stderr


def test_the_usual_mistakes_have_hints(url, recorder, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        assert "speaks HTTP; gRPC has port 8001" in hint("--url", f"127.0.0.1:{web.server_port}")
        web.shutdown()
    assert "is the server running?" in hint("--url", "127.0.0.1:9")
    assert "no host 'no-such-host.invalid'" in hint("--url", "no-such-host.invalid:8001")
    assert "without http://" in hint("--url", f"http://{url}")
    assert "host:port" in hint("--url", "127.0.0.1")
    assert "leave out --tls" in hint("--url", url, "--tls")
    with tls_server(recorder, tmp_path) as secured:
        assert "add --tls" in hint("--url", secured)
        assert "certificate is not trusted" in hint("--url", secured, "--tls")
        assert run("health", "--url", secured, "--ca-certificate", tmp_path / "own.pem").exit_code == 0
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = hint("--url", f"127.0.0.1:{silent.getsockname()[1]}", "--connect-timeout", 0.3)
        assert "timed out" in done


def test_a_certificate_without_its_key_is_said(tmp_path, url):
    done = run("health", "--url", url, "--client-key", tmp_path / "missing.pem")
    assert done.exit_code == 2
    assert "missing.pem" in done.stderr


def test_interrupting_ends_it(url, recorder, photo, tmp_path):
    recorder.delay = 20
    command = [sys.executable, "-m", "instantid_client", "generate", photo, "--prompt", "x", "-o", tmp_path / "o.png"]
    process = subprocess.Popen([*command, "--url", url], stderr=subprocess.PIPE, env={**os.environ})
    while not recorder.requests:
        time.sleep(0.05)
    start = time.perf_counter()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=10)
    assert time.perf_counter() - start < 2
    assert process.returncode == 130
    assert error == b"instantid: interrupted\n"
    recorder.delay = 0
