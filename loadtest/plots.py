"""Plots of a run over time and of how its times are distributed, drawn with matplotlib."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from loadtest.record import Record, Request, Sample

BAD = {"refused": "tab:orange", "late": "tab:purple", "wrong": "tab:red", "error": "black"}
BINS = 60
WINDOW = 15
"""Answers over which a moving percentile is taken."""


def tenant_colours(record: Record) -> dict[str, str]:
    return {tenant["name"]: f"C{i % 10}" for i, tenant in enumerate(record.about["scenario"]["tenants"])}


def overview(record: Record) -> Figure:
    """One time axis for callers and server: rates, seconds, requests in progress, queue, rows per step, failures."""
    panels: Sequence[Callable[[Any, Record], None]] = (_rates, _seconds, _in_progress, _queue, _rows, _failures)
    figure = Figure(figsize=(11, 2.1 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True)
    for axis, panel in zip(axes, panels, strict=True):
        panel(axis, record)
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
        legend(axis)
    axes[-1].set_xlabel("seconds since the start")
    return figure


def by_tenant(record: Record) -> Figure:
    """Seconds of every answer over time, one panel for each tenant, a colour for each class; failures as crosses."""
    tenants = list(dict.fromkeys(tenant for tenant, _, _ in record.groups()))
    kinds = [kind["name"] for kind in record.about["scenario"]["classes"]]
    figure = Figure(figsize=(11, 2.4 * max(len(tenants), 1)), layout="constrained")
    for axis, name in zip(
        figure.subplots(max(len(tenants), 1), 1, sharex=True, squeeze=False)[:, 0], tenants, strict=False
    ):
        for tenant, kind, requests in record.groups():
            if tenant == name:
                _timeline(axis, kind, f"C{kinds.index(kind) % 10}", requests)
        axis.set(title=name, ylabel="seconds", ylim=(0, None))
        axis.grid(alpha=0.3)
        legend(axis)
    figure.supxlabel("when the request was due, seconds since the start", fontsize="medium")
    return figure


def waiting(records: Sequence[tuple[str, Record]]) -> Figure:
    """Share of requests that still wait after so many seconds, both logarithmic, one panel for each class.

    One line for each tenant and record; the first record's lines are solid, the second's dashed.
    """
    kinds = list(
        dict.fromkeys(kind for _, record in records for _, kind, found in record.groups() if len(_answered(found)))
    )
    figure = Figure(figsize=(5.5 * max(len(kinds), 1), 3.6), layout="constrained")
    for axis, kind in zip(figure.subplots(1, max(len(kinds), 1), squeeze=False)[0], kinds, strict=False):
        for (label, record), style in zip(records, ("-", "--"), strict=False):
            colours = tenant_colours(record)
            for tenant, found, requests in record.groups():
                seconds = _answered(requests)
                if found == kind and len(seconds):
                    name = f"{tenant} {label}".strip()
                    axis.step(
                        seconds,
                        _share_waiting(len(seconds)),
                        style,
                        where="post",
                        marker=_mark(seconds),
                        color=colours[tenant],
                        label=name,
                    )
        axis.set(title=kind, xscale="log", yscale="log", xlabel="seconds", ylabel="share still waiting")
        plain_ticks(axis.xaxis)
        plain_ticks(axis.yaxis)
        axis.grid(alpha=0.3)
        legend(axis)
    return figure


def legend(axis: Any) -> None:
    """Beside the panel, if it shows anything that has a name."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def plain_ticks(axis: Any) -> None:
    """Label a logarithmic axis with 1, 2 and 5 of each decade, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _share_waiting(count: int) -> Any:
    return 1 - np.arange(count) / count


def _mark(points: Sequence[Any]) -> str:
    """Few points are shown as such; many make a line."""
    return "o" if len(points) < 40 else ""


def _answered(requests: Sequence[Request]) -> Any:
    return np.sort([request.seconds for request in requests if request.outcome == "ok"])


def _timeline(axis: Any, kind: str, colour: str, requests: Sequence[Request]) -> None:
    good = sorted((request.planned, request.seconds) for request in requests if request.outcome == "ok")
    axis.plot(*zip(*good, strict=True) if good else ([], []), ".", color=colour, label=kind)
    if len(good) >= 2 * WINDOW:
        at, seconds = map(np.array, zip(*good, strict=True))
        moving = [np.percentile(seconds[max(0, i - WINDOW) : i + WINDOW + 1], 95) for i in range(len(seconds))]
        axis.plot(at, moving, color=colour, linewidth=1, label=f"{kind}, moving p95")
    for outcome, mark in BAD.items():
        found = [(request.planned, request.seconds) for request in requests if request.outcome == outcome]
        if found:
            axis.plot(*zip(*found, strict=True), "x", color=mark, label=f"{kind}, {outcome}", markersize=5)


def _bins(record: Record) -> Any:
    """Edges of equal spans with a few requests each, at most BINS."""
    end = max([record.seconds, *(request.ended for request in record.requests)])
    return np.linspace(0, end, min(BINS, max(len(record.requests) // 4, 5), max(int(end), 1)) + 1)


def _per_second(times: Sequence[float], edges: Any) -> Any:
    return np.histogram(times, edges)[0] / np.diff(edges)


def _rates(axis: Any, record: Record) -> None:
    edges = _bins(record)
    for name, colour in tenant_colours(record).items():
        own = [request for request in record.requests if request.tenant == name]
        due = _per_second([request.planned for request in own], edges)
        answered = _per_second([request.ended for request in own if request.outcome == "ok"], edges)
        axis.stairs(answered, edges, color=colour, label=name)
        axis.stairs(due, edges, color=colour, linestyle=":", alpha=0.7)
    axis.set(ylabel="requests / s", title="answered (solid) and due (dotted)")


def _seconds(axis: Any, record: Record) -> None:
    for name, colour in tenant_colours(record).items():
        good = [(r.planned, r.seconds) for r in record.requests if r.tenant == name and r.outcome == "ok"]
        axis.plot(*zip(*good, strict=True) if good else ([], []), ".", color=colour, label=name)
    axis.set(ylabel="seconds", title="seconds from when a request was due to its answer")


def _in_progress(axis: Any, record: Record) -> None:
    for name, colour in tenant_colours(record).items():
        own = [request for request in record.requests if request.tenant == name]
        changes = sorted([(request.planned, 1) for request in own] + [(request.ended, -1) for request in own])
        if changes:
            at, change = map(np.array, zip(*changes, strict=True))
            axis.step(at, np.cumsum(change), where="post", color=colour, label=name)
    axis.set(ylabel="requests", title="callers: due and not answered")


def _queue(axis: Any, record: Record) -> None:
    _series(axis, record, "pending", lambda sample: sample.pending, "in Triton's queues")
    _series(axis, record, "active", lambda sample: sample.active, "started in the engine")
    axis.set(ylabel="requests", title="server: waiting and started requests")


def _rows(axis: Any, record: Record) -> None:
    _series(axis, record, "rows", lambda sample: sample.rows_per_step, "rows per step")
    axis.set(ylabel="rows", title="server: rows that share a step (2 for a picture with guidance)")


def _series(axis: Any, record: Record, style: str, value: Callable[[Sample], float], label: str) -> None:
    colour = {"pending": "tab:red", "active": "tab:blue", "rows": "tab:green"}[style]
    axis.plot(
        [s.at for s in record.samples],
        [value(s) for s in record.samples],
        color=colour,
        label=label,
        marker=".",
        markersize=3,
    )


def _failures(axis: Any, record: Record) -> None:
    edges = _bins(record)
    for outcome, colour in BAD.items():
        times = [request.ended for request in record.requests if request.outcome == outcome]
        if times:
            axis.stairs(np.histogram(times, edges)[0], edges, color=colour, label=outcome)
    server = np.histogram([s.at for s in record.samples], edges, weights=[s.refused for s in record.samples])[0]
    axis.stairs(server, edges, color="grey", linestyle=":", label="refused, by the server's count")
    axis.set(ylabel="requests", title="requests that were not answered well")
    axis.set_ylim(top=max(1.0, axis.get_ylim()[1]))
