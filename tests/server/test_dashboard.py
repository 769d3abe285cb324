"""Every metric, label and value that the dashboard and the alert rules name, against the running server."""

import json
import re
import urllib.request
from pathlib import Path

import promql_parser
import pytest
import yaml

from .test_engine_on_triton import metric, wait_until

MONITORING = Path(__file__).parents[2] / "deploy/monitoring"
ON_A_GPU = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"}
"""Triton's docs/user_guide/metrics.md; a server without a GPU does not have them. Their label is `gpu_uuid`."""
OF_PROMETHEUS = {"up"}
ADDED_BY_PROMETHEUS = {"instance", "job"}
SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? \S+$", re.MULTILINE)


def expressions():
    dashboard = json.loads((MONITORING / "instantid.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expr = re.sub(r"\$(host|tenant|class)", ".*", target["expr"].replace("$__rate_interval", "5m"))
            yield f"panel {panel['title']}", expr, target["legendFormat"]
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"], str(rule["annotations"])


def selectors(node):
    """Every vector selector below a node of promql_parser's syntax tree."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    parts = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector")]
    for part in [*parts, *(getattr(node, "args", None) or [])]:
        if part is not None:
            yield from selectors(part)


@pytest.fixture(scope="module")
def exposed(server, client, astronaut):
    """Labels of every sample by the metric's name, after one request and one that was refused."""
    client.generate(astronaut, "a portrait", num_inference_steps=1)
    wait_until(lambda: metric(server, "instantid_call_seconds_count") > 0)
    with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for name, labels in SAMPLE.findall(text):
        found.setdefault(name, []).append(dict(re.findall(r'(\w+)="([^"]*)"', labels)))
    return found


@pytest.mark.parametrize(("where", "expression", "legend"), [pytest.param(*e, id=e[0]) for e in expressions()])
def test_what_is_asked_for_exists(where, expression, legend, exposed):
    named = list(selectors(promql_parser.parse(expression)))
    assert named
    labels = set()
    for selector in named:
        if selector.name in ON_A_GPU:
            labels.add("gpu_uuid")
        elif selector.name not in OF_PROMETHEUS:
            assert selector.name in exposed, f"{where}: {selector.name}"
            labels |= {label for sample in exposed[selector.name] for label in sample}
            for matcher in selector.matchers.matchers:
                if matcher.name in ADDED_BY_PROMETHEUS:
                    continue
                values = {sample.get(matcher.name) for sample in exposed[selector.name]}
                pattern = matcher.value if str(matcher.op) == "MatchOp.Re" else re.escape(matcher.value)
                found = [value for value in values if re.fullmatch(pattern, str(value))]
                assert found, f"{where}: {matcher}"
                assert str(matcher.op) != "MatchOp.NotEqual" or len(found) < len(values), f"{where}: {matcher}"
    grouped = {word for words in re.findall(r"by \(([^)]*)\)", expression) for word in re.findall(r"\w+", words)}
    shown = set(re.findall(r"\{\{ ?\$?(?:labels\.)?(\w+) ?\}\}", legend)) - {"value"}
    assert grouped | shown <= labels | ADDED_BY_PROMETHEUS, where


def test_no_metric_of_ours_has_a_label_that_prometheus_owns(exposed):
    ours = {name: sample for name, samples in exposed.items() if name.startswith("instantid_") for sample in samples}
    assert ours
    assert not [name for name, sample in ours.items() if set(sample) & ADDED_BY_PROMETHEUS]


def test_the_dashboard_can_be_imported_and_its_variables_have_values(exposed):
    dashboard = json.loads((MONITORING / "instantid.json").read_text())
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert set(variables) == {"datasource", "host", "tenant", "class"}
    for name in ("host", "tenant", "class"):
        metric, label = re.fullmatch(r"label_values\((\w+)[^,]*, (\w+)\)", variables[name]["query"]["query"]).groups()
        assert metric in OF_PROMETHEUS or any(sample[label] for sample in exposed[metric]), name
        assert any(f"${name}" in target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    sources = [*dashboard["panels"], *(variables[name] for name in ("host", "tenant", "class"))]
    assert {source["datasource"]["uid"] for source in sources} == {"${datasource}"}


def test_every_metric_of_ours_has_a_panel(exposed):
    text = (MONITORING / "instantid.json").read_text()
    ours = {re.sub("_(bucket|sum|count)$", "", name) for name in exposed if name.startswith("instantid_")}
    assert [name for name in ours if name not in text] == []


def test_thresholds_of_the_queue_are_those_of_the_denoiser():
    config = (MONITORING.parents[1] / "model_repository/denoiser/config.pbtxt").read_text()
    rules = (MONITORING / "alerts.yml").read_text()
    places = int(re.search(r"max_queue_size: (\d+)", config)[1])
    seconds = int(re.search(r"default_timeout_microseconds: (\d+)", config)[1]) // 10**6
    assert f"of {places} places" in rules
    assert f"> {places * 3 // 4}" in rules
    assert f"wait for {seconds} seconds" in rules
    assert f"; {places} is full" in (MONITORING / "instantid.json").read_text()
