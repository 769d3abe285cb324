"""Why a server cannot be reached: the usual mistakes, recognised by one connection of our own."""

import socket

DEFAULT = "gRPC has port 8001 unless set otherwise"
HTTP2_SETTINGS = 4
REQUEST = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
SECONDS = 2.0


def hint_for(address: str, tls: bool) -> str:
    """A sentence about what listens at `host:port`, or empty if nothing odd is seen there."""
    if "//" in address:
        return "the address is host:port, without http:// before it"
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return f"the address is host:port; {DEFAULT}"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), SECONDS) as connection:
            return _about(_first_bytes(connection), tls)
    except socket.gaierror:
        return f"there is no host {host!r}"
    except ConnectionRefusedError:
        return f"nothing listens on port {port} of {host}: is the server running? {DEFAULT}"
    except (OSError, OverflowError) as error:
        return f"port {port} of {host} cannot be reached ({error}): is a firewall between?"


def _first_bytes(connection: socket.socket) -> bytes:
    connection.sendall(REQUEST)
    connection.settimeout(SECONDS)
    try:
        return connection.recv(16)
    except (TimeoutError, ConnectionResetError):
        return b""


def _about(answer: bytes, tls: bool) -> str:
    if answer.startswith(b"HTTP/1"):
        return f"that port speaks HTTP; {DEFAULT}"
    if answer.startswith(b"\x15\x03"):
        return (
            "the server's certificate is not trusted; see --ca-certificate"
            if tls
            else "the server wants TLS: add --tls"
        )
    if tls and answer[3:4] == bytes([HTTP2_SETTINGS]):
        return "the server speaks gRPC without TLS: leave out --tls and the certificates"
    return ""
