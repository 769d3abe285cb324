"""The synchronous gRPC client."""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from instantid import contract
from instantid_client.errors import AnswerMismatch, InstantIDError, Unreachable, from_status
from instantid_client.options import Options, Photo, make_inputs, read_photo
from instantid_client.results import FaceReport, GenerationResult, Health

DEFAULT_TIMEOUT = 120.0
MODEL = contract.INSTANTID.name


@dataclass(frozen=True, slots=True)
class TLS:
    """Files in PEM form; all None trusts the system's roots and shows no certificate of one's own."""

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None


@dataclass(frozen=True, slots=True)
class Routing:
    """Who asks and how urgent it is: `priority` 1 (most urgent) to 3, None for the server's default."""

    tenant: str | None = None
    priority: int | None = None


class InstantIDClient:
    """One connection to a server; safe to share between threads, and a context manager.

    `timeout` in seconds is the deadline of each call: it travels with the request, and the server stops working
    once it has passed. `metadata` is sent with every call (names in lower case). Nothing is retried: a client
    that tries again when the server is full makes it fuller; `Overloaded` and `Unreachable` say when it may help.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        timeout: float = DEFAULT_TIMEOUT,
        tls: TLS | None = None,
        metadata: Mapping[str, str] | None = None,
        routing: Routing | None = None,
        transport: Any = None,
    ) -> None:
        self.url = url
        self._timeout = timeout
        self._metadata = dict(metadata or {})
        self._routing = routing or Routing()
        self._transport = transport or _connect(url, tls)

    def __enter__(self) -> "InstantIDClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    def generate(
        self,
        photo: Photo | Sequence[Photo],
        prompt: str,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        routing: Routing | None = None,
        **options: Unpack[Options],
    ) -> GenerationResult:
        """A picture of the person in `photo` (one photo, or 1..4 of the same person) as `prompt` says.

        `timeout` in seconds overrides the client's; `request_id` is drawn if not given. Raises the errors of
        `instantid_client.errors`, and OSError for a photo file that cannot be read.
        """
        photos = [photo] if isinstance(photo, (bytes, str, Path)) else list(photo)
        values: dict[str, Any] = {"photo": [read_photo(p) for p in photos], "prompt": prompt, **options}
        if "pose_photo" in options:
            values["pose_photo"] = read_photo(options["pose_photo"])
        start = time.perf_counter()
        answer = self._infer(
            make_inputs(values), request_id or uuid.uuid4().hex, timeout or self._timeout, routing or self._routing
        )
        return _read_answer(answer, time.perf_counter() - start)

    def health(self, timeout: float = 5.0) -> Health:
        """State of the server and of the ensemble. Raises Unreachable if nothing answers."""
        options = {"client_timeout": timeout, "headers": self._metadata}
        try:
            return Health(
                live=bool(self._transport.is_server_live(**options)),
                ready=bool(self._transport.is_server_ready(**options)),
                model_ready=bool(self._transport.is_model_ready(MODEL, **options)),
                triton_version=self._transport.get_server_metadata(**options).version,
            )
        except InferenceServerException as error:
            raise _translate(error) from error

    def _infer(self, inputs: list[Any], request_id: str, timeout: float, routing: Routing) -> Any:
        parameters: dict[str, Any] = {contract.DEADLINE_MS.name: max(round(timeout * 1000), 1)}
        if routing.tenant is not None:
            parameters[contract.TENANT.name] = routing.tenant
        if routing.priority is not None:
            parameters[contract.PRIORITY_LEVEL.name] = routing.priority
        try:
            answer = self._transport.infer(
                MODEL,
                inputs,
                request_id=request_id,
                priority=routing.priority or 0,
                client_timeout=timeout,
                headers=self._metadata,
                parameters=parameters,
            )
        except InferenceServerException as error:
            raise _translate(error) from error
        _check_id(answer, request_id)
        return answer


def _connect(url: str, tls: TLS | None) -> triton.InferenceServerClient:
    if tls is None:
        return triton.InferenceServerClient(url)
    files = (tls.root_certificates, tls.private_key, tls.certificate_chain)
    root, key, chain = (str(path) if path else None for path in files)
    return triton.InferenceServerClient(url, ssl=True, root_certificates=root, private_key=key, certificate_chain=chain)


def _check_id(answer: Any, sent: str) -> None:
    """A server that was frozen once handed one caller's answer to another (docs/request.md); never accept that."""
    found = answer.as_numpy(contract.REQUEST_ID.name)
    if found is None or found.reshape(-1)[0] != sent.encode():
        raise AnswerMismatch(f"the answer to request {sent} carries another request's id")


def _read_answer(answer: Any, seconds: float) -> GenerationResult:
    output: Callable[[contract.Tensor], Any] = lambda tensor: answer.as_numpy(tensor.name).reshape(-1)  # noqa: E731
    return GenerationResult(
        images=tuple(output(contract.IMAGE)),
        seeds=tuple(int(seed) for seed in np.asarray(output(contract.SEEDS))),
        face=FaceReport.from_json(output(contract.FACE)[0]),
        request_id=output(contract.REQUEST_ID)[0].decode(),
        seconds=seconds,
    )


def _translate(error: InferenceServerException) -> InstantIDError:
    name = str(error.status() or "").removeprefix("StatusCode.")
    status = getattr(grpc.StatusCode, name, None)
    if status is None:
        return Unreachable(error.message())
    return from_status(status, error.message())
