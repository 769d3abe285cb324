"""Many requests at a time, for both clients."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from instantid_client._compat import Required
from instantid_client._options import Options
from instantid_client.errors import InstantIDError
from instantid_client.results import GenerationResult
from instantid_client.settings import Routing

CAUGHT = (InstantIDError, OSError, TypeError, ValueError)
"""What one request may raise without ending the others."""


class BatchRequest(Options, total=False):
    """The arguments of one `generate`. `photo` is a photo or up to four of one person."""

    photo: Required[Any]
    prompt: Required[str]
    timeout: float
    request_id: str
    routing: Routing


@dataclass(frozen=True, slots=True)
class BatchItem:
    """What came of the request at `index` (from 0): its result, or its error."""

    index: int
    request: BatchRequest
    result: GenerationResult | None = None
    error: Exception | None = None


def run_batch(
    generate: Callable[..., GenerationResult], requests: Iterable[BatchRequest], concurrency: int
) -> Iterator[BatchItem]:
    def run(index: int, request: BatchRequest) -> BatchItem:
        try:
            return BatchItem(index, request, result=generate(**request))
        except CAUGHT as error:
            return BatchItem(index, request, error=error)

    pool = ThreadPoolExecutor(_checked(concurrency), "instantid-batch")
    running: set[Future[BatchItem]] = set()
    try:
        for index, request in enumerate(requests):
            running.add(pool.submit(run, index, request))
            if len(running) == concurrency:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


async def run_batch_async(
    generate: Callable[..., Awaitable[GenerationResult]], requests: Iterable[BatchRequest], concurrency: int
) -> AsyncIterator[BatchItem]:
    async def run(index: int, request: BatchRequest) -> BatchItem:
        try:
            return BatchItem(index, request, result=await generate(**request))
        except CAUGHT as error:
            return BatchItem(index, request, error=error)

    running: set[asyncio.Task[BatchItem]] = set()
    _checked(concurrency)
    try:
        for index, request in enumerate(requests):
            running.add(asyncio.create_task(run(index, request)))
            if len(running) == concurrency:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _checked(concurrency: int) -> int:
    if concurrency < 1:
        raise ValueError(f"concurrency: {concurrency}; must be at least 1")
    return concurrency
