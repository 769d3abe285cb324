"""Flags of the command: those of the contract, and those of the connection that all commands share."""

import enum
import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

import typer

from instantid_client import contract
from instantid_client._values import OPTIONS
from instantid_client.client import DEFAULT_URL
from instantid_client.errors import invalid
from instantid_client.retry import Retry
from instantid_client.settings import DEFAULT_TIMEOUT, LONGEST_TIMEOUT, Routing
from instantid_client.transport import TLS

Flag = inspect.Parameter
METADATA_VARIABLE = "INSTANTID_METADATA"


def with_flags(**makers: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The parameters of each maker become flags of the command, which is given what the maker makes of them."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        shared = {name: list(inspect.signature(maker).parameters.values()) for name, maker in makers.items()}
        flags = [flag for name, flag in signature.parameters.items() if name not in makers]
        flags += [flag for name in makers for flag in shared[name]]

        @functools.wraps(function)
        def run(**given: Any) -> Any:
            made = {name: makers[name](**{flag.name: given.pop(flag.name) for flag in shared[name]}) for name in makers}
            return function(**given, **made)

        run.__dict__["__signature__"] = signature.replace(parameters=[f.replace(kind=Flag.KEYWORD_ONLY) for f in flags])
        run.__annotations__ = {flag.name: flag.annotation for flag in flags}
        return run

    return decorate


def connection(  # noqa: PLR0913 - one parameter for each flag
    url: Annotated[
        str, typer.Option(help="gRPC address host:port, or several with commas between.", envvar="INSTANTID_URL")
    ] = DEFAULT_URL,
    timeout: Annotated[
        float, typer.Option(help="Seconds after which a request is given up.", min=0.001, max=LONGEST_TIMEOUT)
    ] = DEFAULT_TIMEOUT,
    connect_timeout: Annotated[float, typer.Option(help="Seconds for reaching a server.", min=0.001)] = 10.0,
    retries: Annotated[int, typer.Option(help="How often a request is sent again to a full server.", min=0)] = 0,
    tenant: Annotated[str | None, typer.Option(help="Name of the tenant.", envvar="INSTANTID_TENANT")] = None,
    token: Annotated[
        str | None, typer.Option(help="Sent as `authorization: Bearer ...`.", envvar="INSTANTID_TOKEN")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(help=f"NAME=VALUE sent with every call; may repeat. Also {METADATA_VARIABLE}=NAME=VALUE,..."),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt; trusts the system's authorities.")] = False,
    ca_certificate: Annotated[
        Path | None, typer.Option(help="PEM file of the authority to trust.", envvar="INSTANTID_CA_CERTIFICATE")
    ] = None,
    client_key: Annotated[
        Path | None, typer.Option(help="PEM file of one's own key.", envvar="INSTANTID_CLIENT_KEY")
    ] = None,
    client_certificate: Annotated[
        Path | None, typer.Option(help="PEM file of one's own certificate.", envvar="INSTANTID_CLIENT_CERTIFICATE")
    ] = None,
) -> Callable[[], dict[str, Any]]:
    """Gives the arguments of a client; what they hold is checked only when they are asked for."""

    def arguments() -> dict[str, Any]:
        files = ca_certificate, client_key, client_certificate
        return {
            "url": [address.strip() for address in url.split(",")],
            "timeout": timeout,
            "connect_timeout": connect_timeout,
            "retries": Retry(attempts=retries + 1) if retries else None,
            "routing": Routing(tenant),
            "token": token,
            "metadata": {**_metadata_from_environment(), **dict(_pair("--metadata", text) for text in metadata or [])},
            "tls": TLS(*files) if tls or any(files) else None,
        }

    return arguments


def options(**given: Any) -> dict[str, Any]:
    """What was given of the contract's options; one flag each but for photo and prompt."""
    plain = {name: value.value if isinstance(value, enum.Enum) else value for name, value in given.items()}
    return {name: value for name, value in plain.items() if value is not None}


def _flag(option: contract.Option) -> Flag:
    kind, limits = _kind(option)
    help_ = [option.help]
    if isinstance(option, (contract.Images, contract.Text, contract.Side)):
        help_.append(f"{option.bound[:1].upper()}{option.bound[1:]}.")
    if option.default not in (None, ""):
        help_.append(f"Default: {option.default}.")
    flag = typer.Option(help=" ".join(help_), show_default=False, **limits)
    return Flag(option.name, Flag.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, flag])


def _kind(option: contract.Option) -> tuple[Any, dict[str, Any]]:
    """What the flag takes, and typer's names of its limits."""
    if isinstance(option, contract.Images):
        return Path, {"exists": True, "dir_okay": False}
    if isinstance(option, contract.Choice):
        return enum.Enum(option.name, [(choice, choice) for choice in option.choices]), {}
    if isinstance(option, contract.Text):
        return str, {}
    return float if option.datatype == "FP32" else int, {"min": option.low, "max": option.high}


options.__dict__["__signature__"] = inspect.Signature(
    [_flag(option) for name, option in OPTIONS.items() if name not in contract.REQUIRED]
)


def _metadata_from_environment() -> Mapping[str, str]:
    """`NAME=VALUE,NAME=VALUE`, values percent-encoded where they hold a comma, as in OTEL_EXPORTER_OTLP_HEADERS."""
    pairs = os.environ.get(METADATA_VARIABLE, "").split(",")
    return {name: unquote(value) for name, value in (_pair(METADATA_VARIABLE, text) for text in pairs if text.strip())}


def _pair(source: str, text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise invalid(source, repr(text), "must be NAME=VALUE")
    return name.strip(), value
