"""`python -m loadtest`: run a scenario against a server, compare two runs, draw a report anew."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from instantid_client import InstantIDError
from loadtest.compare import compare, is_worse, write_comparison
from loadtest.record import Record, read_record
from loadtest.report import write_report
from loadtest.scenario import Scenario, load_scenario, read_toml, shipped
from loadtest.server import default_url
from loadtest.slo import Objective, Objectives, Verdict, judge

NOT_KEPT, UNUSABLE = 1, 2
"""Exit codes: the objectives are not kept, or B is worse; nothing could be measured."""
PHOTO = Path(str(files("loadtest"))) / "data" / "astronaut.jpg"
app = typer.Typer(add_completion=False, no_args_is_help=False, help=__doc__)
console = Console(stderr=True, highlight=False, soft_wrap=True)


@app.command()
def run(  # noqa: PLR0913 - one parameter for each option
    scenario: Annotated[str, typer.Argument(help="Name of a shipped scenario, or a TOML file.")] = "steady",
    host: Annotated[str, typer.Option(help="The server's gRPC address.")] = "localhost:8001",
    metrics: Annotated[
        list[str] | None, typer.Option(help="Its metrics, once for each server; default: the port after gRPC's.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Length, in place of the scenario's.")] = None,
    users: Annotated[float | None, typer.Option(help="Closed loop with so many callers.")] = None,
    rate: Annotated[float | None, typer.Option(help="Open loop with so many requests a second.")] = None,
    load: Annotated[float | None, typer.Option(help="Open loop at this share of the server's capacity.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of arrivals, prompts and pictures.")] = None,
    photo: Annotated[Path, typer.Option(help="Sent with every request.")] = PHOTO,
    slo: Annotated[Path | None, typer.Option(help="TOML file of objectives, in place of the scenario's.")] = None,
    check_equal: Annotated[
        bool, typer.Option("--check-equal", help="Send only requests whose pictures alone are known, and compare.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Deadline of tenants without one, in seconds.")] = 120.0,
    output: Annotated[Path, typer.Option(help="Folder that receives a folder for each run.")] = Path("out/loadtest"),
    web: Annotated[bool, typer.Option("--web", help="Show locust's page while the run goes on.")] = False,
    web_port: int = 8089,
) -> None:
    """Run a scenario; exit code 1 if its objectives are not kept, 2 if nothing could be measured."""
    # Locust replaces blocking calls of the whole process by gevent's when it is imported.
    from loadtest.locusts import Session, drive
    from loadtest.run import Target

    chosen, objectives = _or_leave(
        lambda: _chosen(scenario, slo, seconds=seconds, users=users, rate=rate, load=load, seed=seed)
    )
    target = Target(host, photo.read_bytes(), tuple(metrics or [default_url(host)]), timeout, check_equal=check_equal)
    judged: list[list[Verdict]] = []

    def finished(folder: Path) -> None:
        judged.append(finish(folder, objectives))

    session = Session(output, {"check_equal": check_equal}, console.print, finished, web_port if web else None)
    try:
        drive(chosen, target, session)
    except InstantIDError as error:
        console.print(f"{host}: {type(error).__name__}: {error}", style="red", markup=False)
        raise typer.Exit(UNUSABLE) from None
    raise typer.Exit(exit_code(judged[-1]) if judged else UNUSABLE)


@app.command("compare")
def compare_command(
    before: Annotated[Path, typer.Argument(help="Folder of run A.")],
    after: Annotated[Path, typer.Argument(help="Folder of run B.")],
    tolerance: Annotated[float, typer.Option(help="Relative difference that does not count.")] = 0.1,
    output: Annotated[Path | None, typer.Option(help="Folder for the two pages; default: that of B.")] = None,
) -> None:
    """Compare two runs; exit code 1 if B is slower than A or loses more."""
    a, b = _or_leave(lambda: (read_record(before), read_record(after)))
    _, page = write_comparison(output or after, a, b, tolerance)
    console.print(page.read_text(), markup=False)
    raise typer.Exit(NOT_KEPT if is_worse(a, b, compare(a, b), tolerance) else 0)


@app.command()
def report(folder: Path, slo: Annotated[Path | None, typer.Option(help="TOML file of objectives.")] = None) -> None:
    """Judge a run and draw its report anew; exit code as that of `run`."""
    verdicts = _or_leave(lambda: finish(folder, _objectives(slo) if slo else _own(read_record(folder))))
    raise typer.Exit(exit_code(verdicts))


@app.command()
def scenarios() -> None:
    """List the shipped scenarios."""
    for name in shipped():
        print(f"{name:18}{load_scenario(name).description}")


def finish(folder: Path, objectives: tuple[Objective, ...]) -> list[Verdict]:
    """Judge the run in `folder`, write its report and say where it is."""
    record = read_record(folder)
    verdicts = judge(record, objectives)
    page, _ = write_report(folder, record, verdicts)
    for verdict in verdicts:
        if not verdict.kept:
            console.print(
                f"not kept: {verdict.tenant} / {verdict.kind}: {verdict.limit_of} is {verdict.found:.3g}, "
                f"limit {verdict.limit:g} {verdict.unit}", style="red", markup=False,
            )  # fmt: skip
    console.print(
        f"{sum(verdict.kept for verdict in verdicts)} of {len(verdicts)} limits kept; report: {page}", markup=False
    )
    return verdicts


def exit_code(verdicts: Sequence[Verdict]) -> int:
    return NOT_KEPT if any(not verdict.kept for verdict in verdicts) else 0


def _chosen(name: str, slo: Path | None, **changes: Any) -> tuple[Scenario, tuple[Objective, ...]]:
    scenario = load_scenario(name).changed(**changes)
    return scenario, _objectives(slo) if slo else scenario.objectives


def _objectives(path: Path) -> tuple[Objective, ...]:
    return Objectives.model_validate(read_toml(path, Objectives)).objectives


def _own(record: Record) -> tuple[Objective, ...]:
    return Scenario.model_validate(record.about["scenario"]).objectives


def _or_leave(read: Any) -> Any:
    try:
        return read()
    except (ValueError, OSError) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(UNUSABLE) from None


if __name__ == "__main__":
    app()
