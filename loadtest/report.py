"""The report of a run: one HTML page that needs no other file, and the same in Markdown beside its plots."""

import base64
import io
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from loadtest import plots
from loadtest.record import Record
from loadtest.slo import Verdict
from loadtest.summary import FEWEST, Row, summary


def write_report(folder: Path, record: Record, verdicts: list[Verdict]) -> tuple[Path, Path]:
    """Write `report.html`, `report.md` and the plots into `folder`; returns the two pages."""
    figures = {
        "overview": plots.overview(record),
        "tenants": plots.by_tenant(record),
        "waiting": plots.waiting([("", record)]),
    }
    shown = {"record": record, "rows": summary(record), "verdicts": verdicts, "server": server_summary(record)}
    return render(folder, "report", shown, figures)


def render(folder: Path, name: str, shown: Mapping[str, Any], figures: Mapping[str, Figure]) -> tuple[Path, Path]:
    """Fill the two templates of this name, with the pictures inside the page and beside the Markdown file."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {title: _png(figure) for title, figure in figures.items()}
    for title, picture in pictures.items():
        (folder / f"{title}.png").write_bytes(picture)
    encoded = {title: base64.b64encode(picture).decode() for title, picture in pictures.items()}
    pages = folder / f"{name}.html", folder / f"{name}.md"
    for page in pages:
        template = _templates().get_template(f"{page.name}.jinja")
        page.write_text(template.render(**shown, pictures=encoded))
    return pages


def server_summary(record: Record) -> dict[str, float]:
    """What the server's metrics say of the whole run; empty without samples."""
    if not (samples := record.samples):
        return {}
    steps = sum(sample.steps for sample in samples)
    return {
        "longest queue in Triton": max(sample.pending for sample in samples),
        "most started requests": max(sample.active for sample in samples),
        "largest backlog, seconds of work": max(sample.backlog_seconds for sample in samples),
        "steps": steps,
        "rows per step": sum(sample.rows for sample in samples) / steps if steps else math.nan,
        "requests answered": sum(sample.answered for sample in samples),
        "requests refused": sum(sample.refused for sample in samples),
    }


def generator_lag(record: Record) -> float:
    """99th percentile of the seconds between when a request was due and when it was sent."""
    lags = [request.sent - request.planned for request in record.requests]
    return float(np.percentile(lags, 99)) if lags else math.nan


def number(value: float) -> str:
    """Three significant digits; a dash for what was not measured."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


def cell(row: Row, name: str) -> str:
    """A percentile of a row, in brackets if there are too few answers for it to say much."""
    text = number(getattr(row, name))
    return f"({text})" if row.outcomes["ok"] < FEWEST[name[:3]] and text != "–" else text


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("loadtest", "data/templates"),
        autoescape=lambda name: bool(name) and ".html" in str(name),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update(number=number, cell=cell)
    made.globals.update(style=(files("loadtest") / "data/templates/style.css").read_text(), lag=generator_lag)
    return made
