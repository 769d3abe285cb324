"""What goes over the wire and comes back, for both clients."""

import inspect
import subprocess
import sys
import time

import pytest
from opentelemetry import trace

from instantid_client import (
    AnswerMismatch,
    AsyncInstantIDClient,
    DeadlineExceeded,
    FakeClient,
    InstantIDClient,
    InvalidArgument,
    Routing,
    ServerError,
)
from tests.client.conftest import FACE


def test_only_what_the_caller_sets_is_sent(call, url, recorder):
    call.generate(url, b"photo", "a portrait")
    assert recorder.inputs() == {"photo": [b"photo"], "prompt": [b"a portrait"]}
    call.generate(
        url,
        [b"one", b"two"],
        "ü",
        seed=7,
        guidance_scale=2.5,
        pose_photo=b"pose",
        scheduler="ddim",
        width=512,
        height=None,
    )
    assert recorder.inputs() == {
        "photo": [b"one", b"two"], "prompt": ["ü".encode()], "seed": [7], "guidance_scale": [2.5],
        "pose_photo": [b"pose"], "scheduler": [b"ddim"], "width": [512],
    }  # fmt: skip


def test_the_answer_is_typed(call, url):
    result = call.generate(url, b"photo", "x", num_images_per_prompt=2, request_id="mine")
    assert result.images == (b"picture 0", b"picture 1")
    assert result.seeds == (5, 6)
    assert result.request_id == "mine"
    assert result.face.box == (1, 2, 3, 4)
    assert result.face.photos[0].detection_size == FACE["detection_size"]
    assert result.report == ({"i": 0}, {"i": 1})
    assert 0 < result.timings["call"] <= result.timings["total"] == result.seconds


def test_a_server_without_reports_is_read_too(call, url, recorder):
    recorder.left_out = "report"
    assert call.generate(url).report == ()


@pytest.mark.parametrize("output", ["image", "seeds", "face", "request_id"])
def test_an_answer_that_is_not_whole_is_an_error(call, url, recorder, output):
    recorder.left_out = output
    with pytest.raises(ServerError, match="cannot be read"):
        call.generate(url)


def test_routing_and_deadline_travel_with_the_request(call, url, recorder):
    call.generate(url, timeout=1.5, routing=Routing("acme", 1), client={"routing": Routing("other")})
    parameters = {k: getattr(v, v.WhichOneof("parameter_choice")) for k, v in recorder.requests[-1].parameters.items()}
    assert 1400 < parameters.pop("deadline_ms") <= 1500
    assert parameters == {"tenant": "acme", "priority_level": 1, "priority": 1}


@pytest.mark.parametrize(
    "routing", [{"tenant": ""}, {"tenant": "a" * 129}, {"tenant": 3}, {"priority": 0}, {"priority": 4}]
)
def test_routing_outside_the_contract_is_refused(routing):
    with pytest.raises(InvalidArgument) as caught:
        Routing(**routing)
    assert caught.value.field == {"tenant": "tenant", "priority": "priority_level"}[next(iter(routing))]


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def sent_trace(recorder):
    parameter = recorder.requests[-1].parameters.get("traceparent")
    return recorder.metadata.get("traceparent", ""), parameter.string_param if parameter else ""


def test_the_trace_context_of_the_caller_travels_as_header_and_as_parameter(call, url, recorder):
    call.generate(url)
    assert sent_trace(recorder) == ("", "")
    context = trace.SpanContext(
        int(PARENT[3:35], 16), int(PARENT[36:52], 16), is_remote=False, trace_flags=trace.TraceFlags(1)
    )
    with trace.use_span(trace.NonRecordingSpan(context)):
        call.generate(url)
        assert sent_trace(recorder) == (PARENT, PARENT)
        other = PARENT.replace("0af7", "0af8")
        call.generate(url, routing=Routing(traceparent=other))
        assert sent_trace(recorder) == (other, other)


@pytest.mark.parametrize("traceparent", ["0" * 56, "a\nb", "ü", 3])
def test_a_trace_context_that_cannot_be_sent_is_refused(traceparent):
    with pytest.raises(InvalidArgument, match=r"traceparent|metadata"):
        Routing(traceparent=traceparent)


def test_metadata_travels_in_any_case(call, url, recorder):
    call.generate(url, client={"metadata": {"X-Key": "secret", "x-Other_1.b": "2"}})
    assert recorder.metadata["x-key"] == "secret"
    assert recorder.metadata["x-other_1.b"] == "2"
    call(url, "health", client={"metadata": {"X-Key": "again"}})
    assert recorder.metadata["x-key"] == "again"


@pytest.mark.parametrize("metadata", [{"": "a"}, {"a b": "c"}, {"é": "c"}, {"a": "é"}, {"a": "b\n"}, {"a": 3}])
def test_metadata_that_http_cannot_carry_is_refused(metadata):
    with pytest.raises(InvalidArgument, match="metadata: ") as caught:
        InstantIDClient(metadata=metadata)
    assert caught.value.field == "metadata"


def test_the_token_is_asked_for_before_each_call(url, recorder):
    tokens = iter(["first", "second"])
    with InstantIDClient(url, token=lambda: next(tokens)) as client:
        client.generate(b"photo", "x")
        assert recorder.metadata["authorization"] == "Bearer first"
        client.generate(b"photo", "x")
        assert recorder.metadata["authorization"] == "Bearer second"
    with InstantIDClient(url, token="fixed") as client:
        client.health()
        assert recorder.metadata["authorization"] == "Bearer fixed"


def test_an_awaitable_token_is_awaited(url, recorder, call):
    async def token():
        return "awaited"

    if call.kind is AsyncInstantIDClient:
        call.generate(url, client={"token": token})
        assert recorder.metadata["authorization"] == "Bearer awaited"


def test_every_request_has_its_own_id(call, url, recorder):
    call.generate(url)
    call.generate(url)
    first, second = (request.id for request in recorder.requests)
    assert first != second
    assert len(first) == 32


@pytest.mark.parametrize("request_id", ["", "a" * 129, "a\nb", "\ud800", 3])
def test_ids_that_no_log_can_hold_are_refused(request_id):
    client = FakeClient()
    with pytest.raises(InvalidArgument, match="request_id: "):
        client.generate(b"photo", "x", request_id=request_id)
    assert not client.requests


def test_another_request_s_answer_is_thrown_away(call, url, recorder):
    recorder.answer_id = "other"
    with pytest.raises(AnswerMismatch) as caught:
        call.generate(url, request_id="mine")
    assert caught.value.request_id == "mine"


def test_the_deadline_ends_the_call(call, url, recorder):
    recorder.delay = 2.0
    start = time.perf_counter()
    with pytest.raises(DeadlineExceeded) as caught:
        call.generate(url, timeout=0.2)
    assert time.perf_counter() - start < 1.5
    assert caught.value.code == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("timeout", [0, -1, -1e300])
def test_a_timeout_that_has_passed_is_not_no_timeout(call, url, recorder, timeout):
    with pytest.raises(DeadlineExceeded):
        call.generate(url, timeout=timeout)
    with pytest.raises(DeadlineExceeded):
        call(url, "health", timeout=timeout)
    assert not recorder.requests


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), 3601, "5", True, 10**400])
def test_a_timeout_that_is_none_is_refused(call, url, recorder, timeout):
    with pytest.raises(InvalidArgument, match="timeout: "):
        call.generate(url, timeout=timeout)
    with pytest.raises(InvalidArgument, match="timeout: "):
        InstantIDClient(url, timeout=timeout)
    assert not recorder.requests


@pytest.mark.parametrize("options", [{"timeout": 0}, {"connect_timeout": 0}, {"keepalive": -1}])
def test_a_client_needs_some_time(options):
    with pytest.raises(InvalidArgument, match="more than 0 seconds"):
        InstantIDClient(**options)


def test_unknown_arguments_are_type_errors(call, url):
    with pytest.raises(TypeError, match="unknown option 'steps'"):
        call.generate(url, steps=3)
    with pytest.raises(TypeError, match="verbose"):
        InstantIDClient(url, verbose=True)


def test_health(call, url):
    state = call(url, "health")
    assert (state.live, state.ready, state.model_ready, state.triton_version) == (True, True, True, "2.51.0")
    assert [server.address for server in state.servers] == [url]


def test_both_clients_have_the_same_methods():
    methods = [name for name, _ in inspect.getmembers(InstantIDClient, inspect.isfunction) if not name.startswith("_")]
    assert methods == ["batch", "close", "generate", "health"]
    for name in methods:
        ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (InstantIDClient, AsyncInstantIDClient))
        assert ours.parameters == theirs.parameters, name


def test_the_client_needs_no_heavy_package():
    heavy = "torch", "cv2", "PIL", "diffusers", "transformers", "instantid", "build_tools"
    code = f"import sys, instantid_client.__main__; sys.exit(any(name in sys.modules for name in {heavy}))"
    subprocess.run([sys.executable, "-c", code], check=True)
