"""The client for asyncio: the same methods, awaited."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from instantid_client._compat import Self, Unpack
from instantid_client._core import AskToken, Core, Flow, Infer, Pause, Step
from instantid_client._options import Options
from instantid_client.batch import BatchItem, BatchRequest, run_batch_async
from instantid_client.client import DEFAULT_URL
from instantid_client.photos import Photo
from instantid_client.results import GenerationResult, Health
from instantid_client.settings import ClientOptions, Routing, Settings
from instantid_client.transport import AsyncGrpcTransport, AsyncTransport

T = TypeVar("T")


class AsyncInstantIDClient:
    """`InstantIDClient` for asyncio; belongs to the loop of its first call. Cancelling a task cancels its call."""

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        *,
        transport: AsyncTransport | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        settings = Settings(**options)
        self._core = Core(url, settings)
        self._transport = transport or AsyncGrpcTransport(settings.channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the calls that are still running with `ClientClosed`."""
        if self._core.close():
            await self._transport.close()

    async def generate(
        self,
        photo: Photo | Sequence[Photo],
        prompt: str,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        routing: Routing | None = None,
        **options: Unpack[Options],
    ) -> GenerationResult:
        """As `InstantIDClient.generate`. Photos are read and checked on a thread, so that the loop goes on."""
        values = {"photo": photo, "prompt": prompt, **options}
        return await self._run(self._core.generate(values, timeout, request_id, routing))

    async def batch(self, requests: Iterable[BatchRequest], *, concurrency: int = 4) -> AsyncIterator[BatchItem]:
        """As `InstantIDClient.batch`; leaving the loop early cancels the requests that are running."""
        async for item in run_batch_async(self.generate, requests, concurrency):
            yield item

    async def health(self, timeout: float = 5.0) -> Health:
        """As `InstantIDClient.health`."""
        return await self._run(self._core.health(timeout))

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = await asyncio.to_thread(next, flow)
            while True:
                try:
                    outcome = await self._perform(step)
                except Exception as error:  # noqa: BLE001 - the flow decides
                    step = flow.throw(error)
                else:
                    step = flow.send(outcome)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _perform(self, step: Step) -> Any:
        if isinstance(step, Infer):
            return await self._transport.infer(step.address, step.call)
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, AskToken):
            token = step.source()
            return await token if inspect.isawaitable(token) else token
        return await self._transport.health(step.address, step.call)
