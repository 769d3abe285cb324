"""What the load test makes of a run: objectives, report, comparison, the check of answers, the server's metrics."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from instantid_client import FaceReport, GenerationResult
from loadtest.__main__ import app
from loadtest.answers import WrongAnswer, check_answer
from loadtest.compare import Change, compare, is_worse
from loadtest.record import Writer, read_record
from loadtest.report import generator_lag, server_summary, write_report
from loadtest.server import Watch, default_url, parse, total
from loadtest.slo import Objective, judge
from loadtest.summary import jain, summary

from .loadtest_runs import record, requests

GOOD = record(
    requests("a", "long", [4.0] * 100), requests("a", "short", [1.0] * 100), requests("b", "long", [6.0] * 100)
)


def broken(found, **objective):
    return [
        (verdict.tenant, verdict.kind, verdict.limit_of)
        for verdict in judge(found, [Objective(**objective)])
        if not verdict.kept
    ]


def test_objectives_name_tenants_and_classes_by_patterns():
    assert broken(GOOD, p95=5) == [("b", "long", "p95")]
    assert broken(GOOD, tenant="a", p95=5) == []
    assert broken(GOOD, kind="short", p99=0.9) == [("a", "short", "p99")]


def test_limits_relative_to_the_time_alone_use_the_time_of_each_class():
    assert broken(GOOD, p50_alone=2.5) == [("b", "long", "p50")]
    assert broken(GOOD, p50_alone=1.9) == [("a", "long", "p50"), ("a", "short", "p50"), ("b", "long", "p50")]


def test_seconds_count_from_when_a_request_was_due():
    assert judge(record(requests("a", "long", [9.0], late=8.5)), [Objective(p95=1)])[0].found == 9.0


@pytest.mark.parametrize("outcome", ["refused", "late", "wrong", "error"])
def test_what_is_not_allowed_is_not_kept(outcome):
    found = record(requests("a", "long", [1.0] * 99), requests("a", "long", [1.0], outcome))
    name = {"error": "errors"}.get(outcome, outcome)
    assert broken(found, p95=5) == [("a", "long", name)]
    assert broken(found, p95=5, **{name: 0.01}) == []


def test_nothing_measured_is_not_kept():
    assert broken(GOOD, tenant="nobody", p95=5) == [("nobody", "*", "at_least")]
    assert broken(GOOD, tenant="b", at_least=101) == [("b", "long", "at_least")]
    assert ("a", "long", "p95") in broken(record(requests("a", "long", [1.0], "refused")), p95=5, refused=1)


def test_together_judges_all_that_match_as_one():
    assert broken(GOOD, together=True, p50=4.5, p95=5) == [("*", "*", "p95")]
    with pytest.raises(ValueError, match="together"):
        Objective(together=True, p95_alone=3)


def test_rows_of_the_table_have_counts_percentiles_and_totals():
    rows = {(row.tenant, row.kind): row for row in summary(GOOD)}
    assert list(rows) == [("a", "long"), ("a", "short"), ("a", "all"), ("b", "long"), ("all", "all")]
    assert rows["a", "long"].p99_over_alone == 2.0
    assert (rows["all", "all"].requests, rows["all", "all"].p50) == (300, 4.0)


def test_the_report_shows_every_tenant_and_plot_and_escapes_what_callers_were_told(tmp_path):
    found = record(requests("a", "long", [4.0] * 60), requests("b", "short", [1.0], "refused"))
    page, text = write_report(tmp_path, found, judge(found, [Objective(p95=1, refused=1)]))
    html, markdown = page.read_text(), text.read_text()
    assert html.count("data:image/png;base64,") == 3
    assert "&lt;why&gt;" in html
    assert "<why>" not in html
    for name in re.findall(r"\]\((\w+\.png)\)", markdown):
        assert np.asarray(Image.open(tmp_path / name).convert("L")).std() > 5
    assert "| a | long | p95 | 1 | 4 | s | **not kept** |" in markdown
    assert "| a | long | 60 | 60 | 0 | 0 | 0 | 0 | 2 | 4 | 4 | 4 | (4) |" in markdown


def test_a_run_without_answers_and_metrics_has_a_report_too(tmp_path):
    found = replace(record(), samples=[])
    assert server_summary(found) == {}
    assert "metrics were not read" in write_report(tmp_path, found, judge(found, [Objective()]))[1].read_text()


def test_the_report_says_how_late_the_generator_was():
    assert generator_lag(record(requests("a", "long", [2.0] * 10, late=0.25))) == pytest.approx(0.25)


def test_what_was_written_is_read_again(tmp_path):
    writer = Writer(tmp_path, GOOD.about)
    for request in GOOD.requests:
        writer.add(request)
    for sample in GOOD.samples:
        writer.sample(sample)
    writer.close()
    assert read_record(tmp_path) == GOOD
    with pytest.raises(ValueError, match="not a folder"):
        read_record(tmp_path / "other")


def spread(factor, count=300, seed=0):
    rng = np.random.default_rng(seed)
    return record(requests("a", "long", factor * rng.gamma(4, 1, count)))


def test_a_slower_run_is_told_from_chance():
    same, slower = compare(spread(1), spread(1, seed=1)), compare(spread(1), spread(1.5, seed=1))
    assert [change.verdict(0.1) for change in same] == ["same"] * 3
    assert [change.verdict(0.1) for change in slower][:2] == ["slower", "slower"]
    assert [change.verdict(0.1) for change in compare(spread(1.5), spread(1, seed=1))][:2] == ["faster", "faster"]
    assert not is_worse(spread(1), spread(1, seed=1), same, 0.1)
    assert is_worse(spread(1), spread(1.5), slower, 0.1)


def test_a_slower_percentile_whose_interval_reaches_the_tolerance_is_the_same():
    change = Change("a", "long", "p95", (50, 50), before=1.0, after=1.3, low=1.05, high=2.0)
    assert [change.verdict(tolerance) for tolerance in (0.04, 0.1)] == ["slower", "same"]


def test_few_answers_prove_nothing_and_lost_requests_do():
    few = compare(spread(1, 9), spread(9, 9))
    assert [change.verdict(0.1) for change in few] == ["few"] * 3
    lossy = record(requests("a", "long", [1.0] * 9), requests("a", "long", [1.0], "error"))
    assert is_worse(spread(1, 9), lossy, [], 0.1)


def test_the_command_compares_two_folders(tmp_path):
    for name, found in (("A", spread(1)), ("B", spread(2))):
        writer = Writer(tmp_path / name, found.about)
        for request in found.requests:
            writer.add(request)
        writer.close()
    worse = CliRunner().invoke(app, ["compare", str(tmp_path / "A"), str(tmp_path / "B")])
    better = CliRunner().invoke(app, ["compare", str(tmp_path / "B"), str(tmp_path / "A")])
    nothing = CliRunner().invoke(app, ["compare", str(tmp_path / "B"), str(tmp_path / "C")])
    assert (worse.exit_code, better.exit_code, nothing.exit_code) == (1, 0, 2), worse.output
    assert "B is worse" in (tmp_path / "B" / "comparison.md").read_text()
    assert (tmp_path / "A" / "comparison.html").is_file()


def picture(value=0, size=(64, 64), fmt="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(buffer, fmt)
    return buffer.getvalue()


BLACK = picture()


def answer(images=(BLACK,), seeds=(7,), request_id="one"):
    return GenerationResult(images, seeds, FaceReport((0, 0, 1, 1), (), 1.0, 640, 1, 0), request_id, 1.0)


OPTIONS = {"seed": 7, "width": 64, "height": 64}


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (answer(request_id="two"), "request_id"),
        (answer(seeds=(8,)), "seeds"),
        (answer((picture(), picture()), (7, 8)), "seeds"),
        (answer((picture()[:-20],)), "do not decode"),
        (answer((b"<html>",)), "do not decode"),
        (answer((picture(size=(64, 32)),)), "64x32"),
        (answer((picture(fmt="JPEG"),)), "jpeg"),
        (answer((picture(3),)), "differs by 3"),
    ],
)
def test_an_answer_to_something_else_is_wrong(wrong, fault):
    with pytest.raises(WrongAnswer, match=fault):
        check_answer(wrong, "one", OPTIONS, answer())


def test_an_answer_within_two_levels_of_the_one_alone_is_right():
    check_answer(answer((picture(2),)), "one", OPTIONS, answer())
    check_answer(answer((picture(), picture(9)), (7, 8)), "one", {"seed": 7, "num_images_per_prompt": 2})


METRICS = """# HELP x y
instantid_requests_total{engine="gpu0",outcome="OK"} %d
instantid_requests_total{engine="gpu1",outcome="OK"} 5
instantid_requests_total{engine="gpu0",outcome="UNAVAILABLE"} 1
nv_inference_pending_request_count{model="denoiser",version="1"} 3
nv_inference_pending_request_count{model="instantid",version="1"} 9
nv_cpu_utilization 0.5
"""


def test_metrics_are_summed_over_engines_and_counted_from_look_to_look(tmp_path):
    served = tmp_path / "metrics"
    watch = Watch([served.as_uri()])
    looks = []
    for answered in (10, 14, 2):
        served.write_text(METRICS % answered)
        looks.append(watch.look(0.0))
    assert total(parse(METRICS % 10), "instantid_requests_total", outcome="OK") == 15
    assert [look.answered for look in looks] == [0, 4, 2], "the last look is that at a process which began anew"
    assert looks[1].pending == 3


def test_metrics_are_looked_for_at_the_port_after_grpcs():
    assert default_url("gpu7:8001") == "http://gpu7:8002/metrics"
    assert default_url("gpu7") == "http://gpu7:8002/metrics"


def test_fairness_is_one_for_equals_and_one_nth_for_one_who_has_all():
    assert jain([3, 3, 3, 3]) == 1
    assert jain([1, 0, 0, 0]) == 0.25
