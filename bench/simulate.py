"""The serving engine under a simulated clock: waiting times per class of requests, against other ways to schedule.

    python bench/simulate.py               one mix of requests under every policy
    python bench/simulate.py tenants       five equal tenants, and one of them sending ten times its share, by seed
    python bench/simulate.py credit        the same for several sizes of the tenants' credit
    python bench/simulate.py isolation     a tenant alone, and beside one that sends 10 and 32 times as much

Costs of the units are assumed (`bench/simulated.py`); `--costs FILE` takes a table that a GPU wrote.
"""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from simulated import COSTS, MAX_ROWS, MIXES, POLICIES, LeastWork, Mix, arrivals, quiet_and_flood, simulate, solo

from instantid.engine import CostTable, Policy
from instantid.engine.policy import CREDIT

LOAD = 0.9
OTHERS = tuple(f"tenant {name}" for name in "abcd")
FLOODS = (10, 32)
CREDITS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
QUIET_LIMIT, FLOOD_LIMIT = 1.25, 1.3
"""What the policy has to keep: p99 of the worst tenant against least work first, p95 of each under a flood against
without; on every seed."""

app = typer.Typer(add_completion=False)
Requests = Annotated[int, typer.Option(help="Requests of a run, without a flood's.")]
Seeds = Annotated[int, typer.Option(help="Runs, each with arrivals of its own.")]
Plot = Annotated[Path | None, typer.Option(help="Write the plot to this file.")]


@app.callback(invoke_without_command=True)
def compare(
    context: typer.Context,
    requests: Requests = 20000,
    load: Annotated[float, typer.Option(help="Share of what one request at a time can serve.")] = LOAD,
    mix: Annotated[str, typer.Option(help="One of " + ", ".join(MIXES))] = "steps",
    max_rows: Annotated[int, typer.Option(help="Rows in memory, 2 a request.")] = MAX_ROWS,
    seed: int = 0,
    costs: Annotated[Path | None, typer.Option(help="Cost table as JSON.")] = None,
    plot: Plot = None,
) -> None:
    """Print mean, p50, p95 and p99 seconds per class for each policy; without tenants the accounts change nothing."""
    if context.invoked_subcommand:
        return
    table = CostTable.load(costs) if costs else COSTS
    work = arrivals(MIXES[mix], load, requests, seed, table)
    skipped = None if any(kind.tenant for kind in MIXES[mix]) else LeastWork
    results = {
        name: simulate(make, work, table, max_rows, progress(name))
        for name, make in POLICIES.items()
        if make is not skipped
    }
    rows = [
        (policy, name, solo(table, kind), seconds.mean(), *np.percentile(seconds, (50, 95, 99)))
        for policy, classes in results.items()
        for name, seconds in sorted(classes.items())
        for kind in [next(kind for kind in MIXES[mix] if kind.name == name)]
    ]
    show(("policy", "class", "alone", "mean", "p50", "p95", "p99"), rows)
    if plot:
        draw(results, plot)


@app.command()
def tenants(
    requests: Requests = 2500,
    seeds: Seeds = 8,
    small: Annotated[bool, typer.Option("--small", help="512x512, of which several share a step.")] = False,
) -> None:
    """Print p95 and p99 of the worst of four tenants, without and with a flood of the fifth, for each seed."""
    rows = []
    for seed in range(seeds):
        alone, quiet, flood = (run(name, "small " * small + mix, requests, seed) for name, mix in TENANT_RUNS)
        rows.append(
            (seed, *worst(alone), *worst(quiet), quiet_ratio(quiet, alone), *worst(flood), flood_ratio(flood, quiet))
        )
    show(
        ("seed", "no accounts: p95", "p99", "this engine: p95", "p99", "p99 ratio", "flood: p95", "p99", "p95 ratio"),
        rows,
    )


TENANT_RUNS = (("least work, no accounts", "tenants"), ("this engine", "tenants"), ("this engine", "flood"))


@app.command()
def credit(requests: Requests = 2500, seeds: Seeds = 8, plot: Plot = None) -> None:
    """Print the worst ratios over all seeds for each credit, in rooms: the rows that a tenant may hold."""
    rows = []
    for rooms in CREDITS:
        ratios = []
        for seed in range(seeds):
            quiet, flood, careful = (
                run("this engine", mix, requests, seed, rooms) for mix in ("tenants", "flood", "careful flood")
            )
            alone = run("least work, no accounts", "tenants", requests, seed)
            ratios.append((quiet_ratio(quiet, alone), flood_ratio(flood, quiet), flood_ratio(careful, quiet)))
        rows.append((rooms, *np.max(ratios, axis=0)))
    names = ("quiet: p99 / least work's", "flood: p95 / quiet's", "flood that keeps 12 in progress: p95 / quiet's")
    show(("credit", *names), rows)
    if plot:
        draw_credit(rows, names, plot)


@app.command()
def isolation(requests: Requests = 1000, load: float = 0.3) -> None:
    """Print p95 and p99 of a tenant at `load`, alone and beside floods, and its p99 relative to being alone."""
    rows = []
    for steps in (8, 30):
        for name in ("this engine", "step-level, first come"):
            alone, *beside = (
                np.percentile(run(name, quiet_and_flood(steps, ratio), requests, 0, load=load)["quiet"], (95, 99))
                for ratio in (0, *FLOODS)
            )
            for ratio, seconds in zip(FLOODS, beside, strict=True):
                rows.append((name, f"{steps} steps", f"{ratio}:1", *alone, *seconds, seconds[1] / alone[1]))
    show(("policy", "pictures", "flood", "alone: p95", "p99", "beside it: p95", "p99", "p99 ratio"), rows)


def progress(name: str) -> Any:
    return partial(track, description=name, transient=True, console=Console(stderr=True))


@cache
def run(policy: str, mix: str | Mix, requests: int, seed: int, rooms: float = CREDIT, load: float = LOAD) -> Any:
    """Seconds of every request by class; `rooms` is the credit of this engine's policy."""
    make = POLICIES[policy] if rooms == CREDIT else partial(Policy, credit=rooms)
    work = arrivals(MIXES[mix] if isinstance(mix, str) else mix, load, requests, seed)
    return simulate(make, work, progress=progress(f"{policy}, seed {seed}"))


def worst(seconds: dict[str, Any]) -> Any:
    """p95 and p99 of the worst of the tenants that do not flood."""
    return np.max([np.percentile(seconds[name], (95, 99)) for name in OTHERS], axis=0)


def quiet_ratio(quiet: dict[str, Any], alone: dict[str, Any]) -> float:
    return float(worst(quiet)[1] / worst(alone)[1])


def flood_ratio(flood: dict[str, Any], quiet: dict[str, Any]) -> float:
    """The largest p95 of a tenant relative to its own without the flood."""
    return float(max(np.percentile(flood[name], 95) / np.percentile(quiet[name], 95) for name in OTHERS))


def show(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = Table(*columns, box=box.MARKDOWN)
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row))
    Console(width=140).print(table)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Share of requests not yet answered against seconds, logarithmic, one panel per class."""
    from matplotlib.figure import Figure

    names = sorted(next(iter(results.values())))
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for policy, classes in results.items():
            seconds = np.sort(classes[name])
            axis.step(seconds, 1 - np.arange(len(seconds)) / len(seconds), label=policy)
        axis.set(xscale="log", yscale="log", title=name, xlabel="seconds", ylabel="share still waiting")
        plain_ticks(axis.xaxis)
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def draw_credit(rows: Sequence[Sequence[float]], names: Sequence[str], path: Path) -> None:
    """The ratios against the credit, with what the policy has to keep."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    rooms, *lines = zip(*rows, strict=True)
    for line, name in zip(lines, names, strict=True):
        axis.plot(rooms, line, marker="o", label=name)
    axis.axhline(QUIET_LIMIT, color="C0", linestyle=":")
    axis.axhline(FLOOD_LIMIT, color="C1", linestyle=":")
    axis.axvline(CREDIT, color="grey", linewidth=0.8)
    axis.set(
        xlabel="credit in rooms of 16 pictures", ylabel="ratio, worst tenant and seed", xticks=rooms, ylim=(0, None)
    )
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def plain_ticks(axis: Any) -> None:
    """Label a logarithmic axis with 1, 2 and 5 of each decade, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


if __name__ == "__main__":
    app()
