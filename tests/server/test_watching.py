"""What an operator sees of each request: metrics, usage records, spans and logs, on a server with all of it on."""

import json
import re
import shutil
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest
from skimage import data

from build_tools.embedded.serve import project_options
from build_tools.embedded.server import EmbeddedServer
from instantid_client import DeadlineExceeded, InstantIDClient, InvalidArgument, Overloaded, Routing, ServerError

from .collector import Collector, read_attributes
from .conftest import ROOT, encoded
from .test_engine_on_triton import LONG, metric, wait_until

SCHEMA = json.loads((ROOT / "deploy/monitoring/usage_record.schema.json").read_text())
STAGES = ["intake", "face_analysis", "face_conditioning", "queue", "step", "decode", "finish"]
PROMPT = "a portrait that nobody may read in a record"
FAULTS = Path(__file__).parent / "faults"


@pytest.fixture(scope="module")
def collector():
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def usage(tmp_path_factory):
    return tmp_path_factory.mktemp("usage") / "records.jsonl"


@pytest.fixture(scope="module")
def watched(weights, tmp_path_factory, collector, usage):
    folder = tmp_path_factory.mktemp("watched")
    shutil.copytree(ROOT / "model_repository", folder / "models")
    shutil.copy(FAULTS / "denoiser.py", folder / "models/denoiser/1/model.py")
    environment = {
        "INSTANTID_METRICS_TENANTS": "acme, globex",
        "INSTANTID_USAGE_RECORDS": str(usage),
        "INSTANTID_LOG_FORMAT": "json",
        "INSTANTID_MAX_ROWS": "16",
        "INSTANTID_COMPEL": "false",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    options = project_options(weights, folder / "run", folder / "models", environment=environment)
    with EmbeddedServer(options) as server:
        yield server


@pytest.fixture(scope="module")
def caller(watched):
    with InstantIDClient(watched.grpc_url, timeout=120) as connected:
        yield connected


def record_of(usage, request_id):
    found = []

    def is_there():
        lines = usage.read_text().splitlines() if usage.exists() else []
        found[:] = [record for record in map(json.loads, lines) if record["request_id"] == request_id]
        return found

    wait_until(is_there, 10)
    (record,) = found
    jsonschema.validate(record, SCHEMA, format_checker=jsonschema.FormatChecker())
    return record


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"prompt": PROMPT}, SCHEMA)


def test_an_answered_request_has_one_record_that_can_be_billed(caller, usage, astronaut):
    sizes = {"width": 256, "height": 128, "num_images_per_prompt": 2}
    result = caller.generate(
        astronaut, PROMPT, request_id="billed", routing=Routing("acme", 1), num_inference_steps=4, **sizes
    )
    record = record_of(usage, "billed")
    assert (record["tenant"], record["priority_level"], record["outcome"], record["reason"]) == ("acme", 1, "OK", "")
    assert record["cost_units"] == 4 * 2 * 2 * 256 * 128 / 1024**2
    assert list(record["stages"]) == STAGES
    assert sum(record["stages"].values()) == pytest.approx(record["seconds"], abs=1e-4)
    assert 0 < record["gpu_seconds"] <= record["stages"]["step"] + record["stages"]["decode"]
    assert record["seconds"] == pytest.approx(result.seconds, abs=1.0)
    assert PROMPT not in usage.read_text()


def test_a_request_that_is_refused_has_a_record_of_the_stage_where_it_was(caller, usage, astronaut):
    for stage, request_id, options in (
        ("intake", "no steps", {"photo": b"no photo"}),
        ("face_conditioning", "no face", {"photo": encoded(data.coffee())}),
    ):
        with pytest.raises(InvalidArgument):
            caller.generate(**options, prompt=PROMPT, request_id=request_id, routing=Routing("globex"))
        record = record_of(usage, request_id)
        assert (record["stage"], record["tenant"], record["outcome"]) == (stage, "globex", "INVALID_ARG")
        assert record["cost_units"] == 0
    assert record["reason"] == "NoUsableFace"


def test_a_request_that_runs_out_of_time_is_billed_for_what_it_used(caller, usage, astronaut):
    with pytest.raises(DeadlineExceeded):
        caller.generate(astronaut, PROMPT, request_id="late", timeout=6.0, **LONG)
    record = record_of(usage, "late")
    assert (record["outcome"], record["reason"], record["tenant"]) == ("CANCELLED", "Cancelled", "default")
    assert 0 < record["cost_units"] < 199 * 8 * 256 * 256 / 1024**2
    assert record["gpu_seconds"] > 0


def test_requests_that_share_steps_share_the_device_s_seconds(watched, caller, usage, astronaut):
    def generate(i):
        caller.generate(astronaut, PROMPT, request_id=f"shared {i}", num_inference_steps=10, seed=i)

    before = metric(watched, "instantid_step_seconds_sum")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(generate, range(4)))
    records = [record_of(usage, f"shared {i}") for i in range(4)]
    steps = metric(watched, "instantid_step_seconds_sum") - before
    assert sum(record["gpu_seconds"] for record in records) >= steps
    assert sum(record["gpu_seconds"] for record in records) < sum(record["seconds"] for record in records)


def test_metrics_tell_tenants_and_classes_apart_but_only_those_that_are_configured(watched, caller, usage, astronaut):
    def answered(tenant, priority):
        return metric(watched, "instantid_call_seconds_count", tenant=tenant, priority=priority)

    expected = {("acme", "1"): 1, ("other", "3"): 2, ("default", "2"): 1}
    before = {labels: answered(*labels) for labels in expected}
    costs = metric(watched, "instantid_cost_units_total", tenant="other")
    for i, routing in enumerate((Routing("acme", 1), Routing("unheard of", 3), Routing("never seen", 3), Routing())):
        caller.generate(astronaut, PROMPT, request_id=f"counted {i}", routing=routing, num_inference_steps=2)
        record_of(usage, f"counted {i}")
    assert {labels: answered(*labels) - before[labels] for labels in expected} == expected
    assert metric(watched, "instantid_cost_units_total", tenant="other") - costs == 2 * 2 * 2 * 128 * 128 / 1024**2
    text = urllib.request.urlopen(watched.metrics_url, timeout=10).read().decode()
    assert set(re.findall(r'tenant="([^"]*)"', text)) == {"default", "acme", "globex", "other"}
    for stage in STAGES:
        assert metric(watched, "instantid_stage_seconds_count", stage=stage) > 0, stage
    assert 'instantid_step_seconds_bucket{engine="denoiser_0_0",le="10"}' in text


def test_tenants_that_are_not_configured_are_counted_together(watched, astronaut):
    def generate(tenant):
        with InstantIDClient(watched.grpc_url, timeout=120, routing=Routing(tenant)) as client:
            client.generate(astronaut, PROMPT, num_inference_steps=25, width=256, height=256)

    def active():
        return metric(watched, "instantid_active_requests", tenant="other", priority="2")

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(generate, name) for name in ("one", "two")]
        wait_until(lambda: active() == 2)
        for call in running:
            call.result()
    wait_until(lambda: active() == 0, 5)


def test_active_and_refused_requests_are_counted_by_tenant(watched, astronaut):
    """The share of a tenant is 4 rows here: one request of two pictures with guidance, and nothing beside it."""
    long = {"num_inference_steps": 25, "num_images_per_prompt": 2, "width": 256, "height": 256}
    routing = Routing("globex", 3)
    with InstantIDClient(watched.grpc_url, timeout=120, routing=routing) as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.generate, astronaut, PROMPT, **long)
        wait_until(lambda: metric(watched, "instantid_active_requests", tenant="globex", priority="3") == 1)
        with pytest.raises(Overloaded):
            client.generate(astronaut, PROMPT, **long)
        running.result()
    refused = {"tenant": "globex", "outcome": "UNAVAILABLE", "reason": "Overloaded", "stage": "denoiser"}
    wait_until(lambda: metric(watched, "instantid_requests_total", **refused) == 1, 5)
    wait_until(lambda: metric(watched, "instantid_active_requests", tenant="globex", priority="3") == 0, 5)
    assert metric(watched, "instantid_waiting_requests", tenant="globex") == 0


def test_the_caller_s_trace_holds_triton_s_spans_and_ours(caller, collector, usage, astronaut):
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    routing = Routing("acme", traceparent=f"00-{trace}-{parent}-01")
    caller.generate(astronaut, PROMPT, request_id="traced", routing=routing, num_inference_steps=3)

    def children():
        return {span["service"] for span in collector.of(trace) if span["parentSpanId"] == parent}

    wait_until(lambda: children() == {"instantid", "triton"}, 20)
    ours = {span["name"]: span for span in collector.of(trace) if span["service"] == "instantid"}
    assert sorted(ours) == sorted(["instantid", *STAGES])
    whole = ours.pop("instantid")
    assert {span["parentSpanId"] for span in ours.values()} == {whole["spanId"]}
    attributes = read_attributes(whole)
    assert (attributes["instantid.request_id"], attributes["instantid.tenant"]) == ("traced", "acme")
    assert not any(PROMPT in str(span) for span in collector.of(trace))
    times = [(int(ours[name]["startTimeUnixNano"]), int(ours[name]["endTimeUnixNano"])) for name in STAGES]
    assert all(end == begin for (_, end), (begin, _) in pairwise(times))
    triton = [span for span in collector.of(trace) if span["service"] == "triton"]
    (ensemble,) = (s for s in triton if read_attributes(s).get("triton.model_name") == "instantid")
    assert abs(int(ensemble["startTimeUnixNano"]) - int(whole["startTimeUnixNano"])) < 10**9


def test_a_trace_that_is_not_sampled_or_malformed_is_not_joined(caller, collector, usage, astronaut):
    for request_id, traceparent in (
        ("unsampled", "00-0af7651916cd43dd8448eb211c8031aa-b7ad6b7169203331-00"),
        ("malformed", "00-zzzz-1-01"),
    ):
        routing = Routing(traceparent=traceparent)
        caller.generate(astronaut, PROMPT, request_id=request_id, routing=routing, num_inference_steps=1)
        record_of(usage, request_id)
    caller.generate(astronaut, PROMPT, request_id="fence", num_inference_steps=1)

    def seen():
        return {read_attributes(span).get("instantid.request_id") for span in list(collector.spans)}

    wait_until(lambda: "fence" in seen(), 20)
    assert "unsampled" not in seen()


def test_a_failure_is_a_json_line_with_the_request_s_id_and_a_failed_span(watched, caller, collector, usage, astronaut):
    with pytest.raises(ServerError):
        caller.generate(astronaut, "memory", request_id="broken", num_inference_steps=2)
    assert record_of(usage, "broken")["reason"] == "EngineFailure"
    lines = [json.loads(line) for line in watched.log_path.read_text().splitlines() if line.startswith("{")]
    (line,) = (line for line in lines if line.get("request_id") == "broken")
    assert (line["level"], line["logger"]) == ("ERROR", "instantid.engine.engine")
    assert "can't allocate memory" in line["exception"]
    assert any(line["message"] == "denoiser_0_0: configuration 'cpu'" for line in lines)

    def failed():
        spans = [s for s in list(collector.spans) if read_attributes(s).get("instantid.request_id") == "broken"]
        return [span["status"] for span in spans]

    wait_until(failed, 20)
    assert failed()[0]["message"] == "EngineFailure"


def test_compel_can_be_refused_by_a_setting(caller, astronaut):
    with pytest.raises(InvalidArgument, match="prompt_syntax: 'compel'; must be one of plain, a1111"):
        caller.generate(astronaut, PROMPT, prompt_syntax="compel")
