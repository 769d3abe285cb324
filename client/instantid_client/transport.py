"""How calls reach a server: the seam under both clients, and its two forms over tritonclient.

A transport of one's own (a fake, a recorder, another protocol) has the methods of `Transport` or `AsyncTransport`,
and is given to a client by `transport=`.
"""

import asyncio
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from instantid_client import contract
from instantid_client._status import Reply
from instantid_client._values import Tensors
from instantid_client.errors import ClientClosed
from instantid_client.results import ServerHealth

MODEL = contract.INSTANTID.name


@dataclass(frozen=True, slots=True)
class TLS:
    """Files in PEM form; all None trusts the system's roots and shows no certificate of one's own."""

    root_certificates: Path | str | None = None
    private_key: Path | str | None = None
    certificate_chain: Path | str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises OSError for a file that cannot be read."""
        names = self.root_certificates, self.private_key, self.certificate_chain
        root, key, chain = (Path(name).read_bytes() if name is not None else None for name in names)
        return grpc.ssl_channel_credentials(root, key, chain)


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt of a request as it goes out; `timeout` in seconds."""

    request_id: str
    inputs: Tensors
    parameters: Mapping[str, str | int]
    priority: int
    timeout: float
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HealthCall:
    timeout: float
    metadata: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """The call was not answered but refused or lost."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"{reply.status}: {reply.text}")
        self.reply = reply


class Transport(Protocol):
    """Raises Refused for what is not answered, or one of `instantid_client.errors`, which passes as it is."""

    def infer(self, address: str, call: Call) -> Tensors: ...
    def health(self, address: str, call: HealthCall) -> ServerHealth: ...
    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """`Transport` for asyncio."""

    async def infer(self, address: str, call: Call) -> Tensors: ...
    async def health(self, address: str, call: HealthCall) -> ServerHealth: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Channel:
    """How channels are made. `options` by gRPC's names go over the ones from here."""

    tls: TLS | None = None
    connect_timeout: float = 10.0
    keepalive: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """What a tritonclient is made with."""
        patience = int(self.connect_timeout * 1000)
        options: dict[str, Any] = {
            "grpc.max_send_message_length": -1,
            "grpc.max_receive_message_length": -1,
            "grpc.min_reconnect_backoff_ms": patience,
            "grpc.initial_reconnect_backoff_ms": min(patience, 1000),
            "grpc.max_reconnect_backoff_ms": max(patience, 1000),
            "grpc.use_local_subchannel_pool": 1,
            "grpc.service_config": json.dumps({"loadBalancingConfig": [{"round_robin": {}}]}),
        }
        if self.keepalive is not None:
            options["grpc.keepalive_time_ms"] = int(self.keepalive * 1000)
        credentials = self.tls.credentials() if self.tls else None
        return {"creds": credentials, "channel_args": list({**options, **self.options}.items())}


class GrpcTransport:
    """`tritonclient.grpc`, one channel for each address; safe for threads."""

    def __init__(self, channel: Channel) -> None:
        self._arguments = channel.arguments()
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()

    def infer(self, address: str, call: Call) -> Tensors:
        try:
            return _outputs(self._client(address).infer(MODEL, _inputs(call), **_arguments(call)))
        except InferenceServerException as error:
            raise _refused(error) from error

    def health(self, address: str, call: HealthCall) -> ServerHealth:
        client, options = self._client(address), {"client_timeout": call.timeout, "headers": call.metadata}
        try:
            return ServerHealth(
                address,
                live=client.is_server_live(**options),
                ready=client.is_server_ready(**options),
                model_ready=client.is_model_ready(MODEL, **options),
                triton_version=client.get_server_metadata(**options).version,
            )
        except InferenceServerException as error:
            raise _refused(error) from error

    def close(self) -> None:
        with self._lock:
            for client in self._clients.values():
                client.close()

    def _client(self, address: str) -> Any:
        with self._lock:
            if address not in self._clients:
                self._clients[address] = triton.InferenceServerClient(address, **self._arguments)
            return self._clients[address]


class AsyncGrpcTransport:
    """`tritonclient.grpc.aio`; belongs to the event loop of its first call."""

    def __init__(self, channel: Channel) -> None:
        self._arguments = channel.arguments()
        self._clients: dict[str, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def infer(self, address: str, call: Call) -> Tensors:
        try:
            return _outputs(await self._client(address).infer(MODEL, _inputs(call), **_arguments(call)))
        except InferenceServerException as error:
            raise _refused(error) from error

    async def health(self, address: str, call: HealthCall) -> ServerHealth:
        client, options = self._client(address), {"client_timeout": call.timeout, "headers": call.metadata}
        try:
            return ServerHealth(
                address,
                live=await client.is_server_live(**options),
                ready=await client.is_server_ready(**options),
                model_ready=await client.is_model_ready(MODEL, **options),
                triton_version=(await client.get_server_metadata(**options)).version,
            )
        except InferenceServerException as error:
            raise _refused(error) from error

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

    def _client(self, address: str) -> Any:
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise ClientClosed("this client belongs to another event loop; make one for each loop")
        self._loop = loop
        if address not in self._clients:
            self._clients[address] = triton_aio.InferenceServerClient(address, **self._arguments)
        return self._clients[address]


def _inputs(call: Call) -> list[triton.InferInput]:
    return [_input(name, array) for name, array in call.inputs.items()]


def _input(name: str, array: Any) -> triton.InferInput:
    datatype = {"int32": "INT32", "int64": "INT64", "float32": "FP32"}.get(array.dtype.name, "BYTES")
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def _arguments(call: Call) -> dict[str, Any]:
    return {
        "request_id": call.request_id,
        "priority": call.priority,
        "client_timeout": call.timeout,
        "headers": call.metadata,
        "parameters": call.parameters,
    }


def _outputs(result: Any) -> Tensors:
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def _refused(error: InferenceServerException) -> Refused:
    """tritonclient keeps a status' name and text; its trailing metadata is in gRPC's error, the exception's context."""
    metadata: dict[str, str] = {}
    if isinstance(error.__context__, grpc.RpcError):
        trailing = error.__context__.trailing_metadata() or ()
        metadata = {name: value for name, value in trailing if isinstance(value, str)}
    status = str(error.status() or "UNKNOWN").removeprefix("StatusCode.")
    return Refused(Reply(status, error.message() or "", metadata))
