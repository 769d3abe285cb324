"""Locust users: the abstract one owns the client and the timing, the concrete one only names its tasks."""

import random
import time
from pathlib import Path
from typing import Any

from gevent.threadpool import ThreadPool
from locust import User, between, events, task

from instantid_client import InstantIDClient, InstantIDError, Routing

PROMPTS = ("a portrait in a garden", "a knight, oil painting", "a sailor at the sea", "a queen, watercolor")


@events.init_command_line_parser.add_listener
def add_arguments(parser: Any) -> None:
    parser.add_argument("--photo", type=str, required=True, help="photo that every request sends")
    parser.add_argument("--tenants", type=int, default=3, help="tenants among which the users are spread")
    parser.add_argument("--request-timeout", type=float, default=120.0, help="seconds a request may take")


class GrpcUser(User):
    """One caller with its own connection; `host` is the server's gRPC address, host:port.

    Calls block in a thread of the user's own, outside gevent: grpcio's support for gevent now and then never wakes up.
    """

    abstract = True

    def on_start(self) -> None:
        options = self.environment.parsed_options
        self.photo = Path(options.photo).read_bytes()
        tenant = f"tenant-{random.randrange(options.tenants)}"
        self.thread = ThreadPool(1)
        self.client: InstantIDClient = self.thread.apply(
            InstantIDClient,
            (self.host or "localhost:8001",),
            {"timeout": options.request_timeout, "routing": Routing(tenant=tenant)},
        )

    def on_stop(self) -> None:
        self.thread.apply(self.client.close)
        self.thread.kill()

    def generate(self, name: str, **options: Any) -> None:
        """Send one request and report it to locust under `name`; failures are counted by the error's class."""
        start = time.perf_counter()
        length, failure = 0, None
        try:
            result = self.thread.apply(self.client.generate, (self.photo, random.choice(PROMPTS)), options)
            length = sum(len(image) for image in result.images)
        except InstantIDError as error:
            failure = type(error)(type(error).__name__)
        self.environment.events.request.fire(
            request_type="gRPC",
            name=name,
            response_time=1000 * (time.perf_counter() - start),
            response_length=length,
            exception=failure,
        )


class MixedUser(GrpcUser):
    """What callers do: mostly full requests, some drafts, now and then several pictures at once."""

    wait_time = between(0.5, 2.0)

    @task(6)
    def full(self) -> None:
        self.generate("default steps")

    @task(3)
    def draft(self) -> None:
        self.generate("8 steps", num_inference_steps=8)

    @task(1)
    def several(self) -> None:
        self.generate("2 pictures", num_images_per_prompt=2)
