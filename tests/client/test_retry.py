"""Retries: off unless asked for, only after what is safe, within the deadline and the budget."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from instantid_client import (
    Cancelled,
    DeadlineExceeded,
    FakeClient,
    InstantIDClient,
    InvalidArgument,
    Overloaded,
    ResourceExhausted,
    Retry,
    ServerError,
    Unreachable,
)
from instantid_client.retry import Budget, RetryPlan
from tests.client.conftest import PREFIX, STATUS, serve

QUICK = Retry(attempts=3, initial=0.01, maximum=0.05)
FULL = (STATUS.UNAVAILABLE, PREFIX + "Exceeds maximum queue size")


def test_nothing_is_sent_twice_unless_asked_for(call, url, recorder):
    recorder.fail = FULL
    with pytest.raises(Overloaded):
        call.generate(url)
    assert len(recorder.requests) == 1


def test_a_full_server_is_asked_again(call, url, recorder):
    recorder.fail, recorder.fail_first = FULL, 2
    result = call.generate(url, client={"retries": QUICK})
    assert result.images
    assert len(recorder.requests) == 3
    assert len({request.id for request in recorder.requests}) == 1
    assert result.timings["call"] < result.timings["total"]


def test_attempts_are_a_limit(call, url, recorder):
    recorder.fail = FULL
    with pytest.raises(Overloaded):
        call.generate(url, client={"retries": QUICK})
    assert len(recorder.requests) == 3


@pytest.mark.parametrize(
    ("fail", "kind"),
    [
        ((STATUS.INVALID_ARGUMENT, PREFIX + "width: 100; must"), InvalidArgument),
        ((STATUS.INTERNAL, PREFIX + "failed"), ServerError),
        ((STATUS.CANCELLED, PREFIX + "cancelled"), Cancelled),
        ((STATUS.DEADLINE_EXCEEDED, "late"), DeadlineExceeded),
        ((STATUS.UNAVAILABLE, "Socket closed"), Unreachable),
    ],
)
def test_what_may_have_begun_or_cannot_get_better_is_not(call, url, recorder, fail, kind):
    recorder.fail = fail
    with pytest.raises(kind):
        call.generate(url, client={"retries": QUICK})
    assert len(recorder.requests) == 1


def test_a_server_that_comes_up_is_reached(recorder):
    server, port = serve(recorder)
    server.stop(0).wait()
    options = {"grpc.initial_reconnect_backoff_ms": 100, "grpc.max_reconnect_backoff_ms": 100}
    retries = Retry(attempts=20, initial=0.2, maximum=0.2)
    with InstantIDClient(f"127.0.0.1:{port}", retries=retries, channel_options=options) as client:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.generate, b"photo", "x")
            time.sleep(0.5)
            again = serve_at(recorder, port)
            assert waiting.result(20).images
        again.stop(None)


def serve_at(recorder, port):
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(recorder, server)
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    server.start()
    return server


def test_the_hint_is_kept(call, url, recorder):
    recorder.fail, recorder.fail_first = (STATUS.RESOURCE_EXHAUSTED, "slow", (("retry-after", "1"),)), 1
    start = time.perf_counter()
    call.generate(url, client={"retries": QUICK})
    assert 1.0 <= time.perf_counter() - start < 2


def test_a_hint_beyond_the_deadline_ends_the_call_at_once(call, url, recorder):
    recorder.fail = (STATUS.RESOURCE_EXHAUSTED, "slow", (("retry-after", "30"),))
    start = time.perf_counter()
    with pytest.raises(ResourceExhausted) as caught:
        call.generate(url, timeout=2, client={"retries": QUICK})
    assert time.perf_counter() - start < 1
    assert caught.value.retry_after == 30


def test_waits_end_before_the_deadline(call, url, recorder):
    recorder.fail = FULL
    start = time.perf_counter()
    with pytest.raises(Overloaded):
        call.generate(url, timeout=0.6, client={"retries": Retry(attempts=100, initial=0.2, maximum=0.2, budget=1)})
    assert time.perf_counter() - start < 0.8
    assert 2 < len(recorder.requests) < 100


def test_the_deadline_that_is_sent_gets_shorter(call, url, recorder):
    recorder.fail, recorder.fail_first = FULL, 2
    call.generate(url, timeout=5, client={"retries": Retry(initial=0.2, maximum=0.2)})
    sent = [request.parameters["deadline_ms"].int64_param for request in recorder.requests]
    assert sent == sorted(sent, reverse=True)
    assert len(set(sent)) == 3


def test_a_full_server_s_load_is_never_doubled(url, recorder):
    """Upstream calls are counted: 100 requests to a server that stays full become at most 122."""
    recorder.fail = FULL
    with InstantIDClient(url, retries=QUICK) as client, ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: outcome(client), range(100)))
    assert outcomes == [Overloaded] * 100
    assert 100 < len(recorder.requests) <= 100 * (1 + QUICK.budget) + QUICK.attempts - 1


def outcome(client):
    try:
        return client.generate(b"photo", "x")
    except Overloaded as error:
        return type(error)


def test_quiet_times_do_not_save_up_for_a_burst():
    retry = Retry(attempts=3, budget=1)
    budget = Budget(retry)
    for _ in range(1000):
        RetryPlan(retry, budget)
    assert sum(budget.spend() for _ in range(100)) == 10


def test_waits_double_with_jitter():
    retry = Retry(attempts=50, initial=1, maximum=8, budget=1)
    plan = RetryPlan(retry, Budget(retry))
    waits = [plan.pause_after(Overloaded("x"), 1000) for _ in range(20)]
    assert all(wait <= min(2**i, 8) for i, wait in enumerate(waits))
    assert max(waits) > 1
    assert len(set(waits)) == 20


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"initial": 0}, {"initial": 5, "maximum": 1}, {"budget": 2}])
def test_retries_are_checked(wrong):
    with pytest.raises(InvalidArgument, match="retries: "):
        Retry(**wrong)


def test_a_fake_server_can_be_full_too():
    answers = iter([Overloaded("full", retry_after=0.01), b"picture"])

    def handler(request):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    client = FakeClient(handler, retries=QUICK)
    assert client.generate(b"photo", "x").images == (b"picture",)
    assert len(client.requests) == 2
