"""The synchronous client."""

import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from instantid_client._compat import Self, Unpack
from instantid_client._core import AskToken, Core, Flow, Infer, Pause, Step
from instantid_client._options import Options
from instantid_client.batch import BatchItem, BatchRequest, run_batch
from instantid_client.photos import Photo
from instantid_client.results import GenerationResult, Health
from instantid_client.settings import ClientOptions, Routing, Settings
from instantid_client.transport import GrpcTransport, Transport

T = TypeVar("T")
DEFAULT_URL = "localhost:8001"


class InstantIDClient:
    """Calls one or more servers; safe to share between threads, and a context manager.

    `url` is `host:port`, or several of them for round robin: a server that cannot be reached rests, and a request
    that never left goes to the next. `options` are those of `ClientOptions`. Nothing is retried unless
    `retries=Retry(...)` says so. Make it after a fork, not before.
    """

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        *,
        transport: Transport | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        settings = Settings(**options)
        self._core = Core(url, settings)
        self._transport = transport or GrpcTransport(settings.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the calls that are still running with `ClientClosed`."""
        if self._core.close():
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

        `timeout` in seconds and `routing` go before the client's; a `timeout` of 0 or less is a deadline that has
        passed. `request_id` is drawn if not given. Raises the errors of `instantid_client.errors`: `InvalidArgument`
        before anything is sent for a value outside the contract; TypeError for an unknown option or what is no
        photo; OSError for a photo file that cannot be read.
        """
        values = {"photo": photo, "prompt": prompt, **options}
        return self._run(self._core.generate(values, timeout, request_id, routing))

    def batch(self, requests: Iterable[BatchRequest], *, concurrency: int = 4) -> Iterator[BatchItem]:
        """Each request's result or error, as they complete; `requests` are read only as far as there is room.

        A request is a mapping with `photo`, `prompt` and any other argument of `generate`. One that fails does not
        end the others. Leaving the loop early starts no further request.
        """
        return run_batch(self.generate, requests, concurrency)

    def health(self, timeout: float = 5.0) -> Health:
        """State of the servers and of the ensemble. Raises Unreachable if no server answers within `timeout`."""
        return self._run(self._core.health(timeout))

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    outcome = self._perform(step)
                except Exception as error:  # noqa: BLE001 - the flow decides
                    step = flow.throw(error)
                else:
                    step = flow.send(outcome)
        except StopIteration as done:
            result: T = done.value
            return result

    def _perform(self, step: Step) -> Any:
        if isinstance(step, Infer):
            return self._transport.infer(step.address, step.call)
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        if isinstance(step, AskToken):
            return step.source()
        return self._transport.health(step.address, step.call)
