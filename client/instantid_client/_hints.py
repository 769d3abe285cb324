"""Why a server cannot be reached: the usual mistakes, recognised by connections of our own."""

import socket
import ssl

DEFAULT = "gRPC has port 8001 unless set otherwise"
HTTP2_SETTINGS = 4
REQUEST = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
SECONDS = 2.0
TLS_REFUSED = (
    "the server's certificate is not trusted (--ca-certificate), or it asks for yours (--client-key and "
    "--client-certificate)"
)


def hint_for(address: str, tls: bool) -> str:
    """A sentence about what listens at `host:port`, or empty if nothing odd is seen there."""
    if "//" in address:
        return "the address is host:port, without http:// before it"
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return f"the address is host:port; {DEFAULT}"
    place = host.strip("[]"), int(port)
    try:
        return _about(_first_bytes(place), place, tls)
    except socket.gaierror:
        return f"there is no host {host!r}"
    except ConnectionRefusedError:
        return f"nothing listens on port {port} of {host}: is the server running? {DEFAULT}"
    except (OSError, OverflowError) as error:
        return f"port {port} of {host} cannot be reached ({error}): is a firewall between?"


def _first_bytes(place: tuple[str, int]) -> bytes:
    """What is answered to an HTTP/1 request; a gRPC server without TLS sends its HTTP/2 settings."""
    with socket.create_connection(place, SECONDS) as connection:
        try:
            connection.sendall(REQUEST)
            return connection.recv(16)
        except (TimeoutError, ConnectionError):
            return b""


def _about(answer: bytes, place: tuple[str, int], tls: bool) -> str:
    if answer.startswith(b"HTTP/1"):
        return f"that port speaks HTTP; {DEFAULT}"
    if answer[3:4] == bytes([HTTP2_SETTINGS]):
        return "the server speaks gRPC without TLS: leave out --tls and the certificates" if tls else ""
    if _speaks_tls(place):
        return TLS_REFUSED if tls else "the server wants TLS: add --tls"
    return ""


def _speaks_tls(place: tuple[str, int]) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection(place, SECONDS) as connection, context.wrap_socket(connection):
            return True
    except OSError:
        return False
