"""The command `instantid`. Exit codes: 0 done, 1 the server or the connection failed, 2 the request is wrong,
130 interrupted."""

import asyncio
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from instantid_client import _flags
from instantid_client._hints import hint_for
from instantid_client._lines import Line, WrongLine, read_lines
from instantid_client._paint import Tally, paint
from instantid_client._version import __version__
from instantid_client.client import InstantIDClient
from instantid_client.errors import InstantIDError, InvalidArgument, Unreachable
from instantid_client.files import check_writable, format_for, output_paths
from instantid_client.results import GenerationResult
from instantid_client.settings import Routing

FAILED, WRONG, INTERRUPTED = 1, 2, 130
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console(stderr=True)
Arguments = Callable[[], dict[str, Any]]
Parents = Annotated[bool, typer.Option("--parents", help="Make the folders of the outputs.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"instantid {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is called, with ids and times.")] = False,
) -> None:
    """InstantID: a photo of a face and a prompt in, a new picture of the same person out."""
    if verbose:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
        logging.getLogger("instantid_client").setLevel(logging.DEBUG)


@app.command()
@_flags.with_flags(options=_flags.options, connection=_flags.connection)
def generate(  # noqa: PLR0913 - one parameter for each flag
    *,
    photo: Annotated[
        list[Path],
        typer.Argument(help="1..4 photos of one person; - is standard input."),
    ],
    prompt: Annotated[str, typer.Option(help="What to paint.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the picture goes; - is standard output.")],
    priority: Annotated[int | None, typer.Option(help="1 is the most urgent.", min=1, max=3)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print seeds and reports as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    parents: Parents = False,
    options: dict[str, Any],
    connection: Arguments,
) -> None:
    """One request: a picture of the person in PHOTO. The suffix of the output decides its format."""
    with _errors(connection):
        count = options.get("num_images_per_prompt", 1)
        _check_output(output, count, options, force, parents)
        arguments = connection()
        routing = Routing(arguments["routing"].tenant, priority)
        with InstantIDClient(**arguments) as client, _progress() as progress:
            progress.add_task(f"waiting for {', '.join(arguments['url'])}")
            result = client.generate(_photos(photo), prompt, routing=routing, **options)
        if output == Path("-"):
            sys.stdout.buffer.write(result.images[0])
        else:
            _print(result, result.save(output), as_json)


@app.command()
@_flags.with_flags(connection=_flags.connection)
def batch(
    *,
    requests: Annotated[
        Path,
        typer.Argument(help="JSON lines: photo, prompt, output and options; - is standard input."),
    ],
    concurrency: Annotated[int, typer.Option(help="Requests at once.", min=1, max=256)] = 4,
    parents: Parents = False,
    connection: Arguments,
) -> None:
    """Many requests from a file; goes on after errors, skips outputs that exist, prints one JSON line each.

    Every line is checked before the first is sent. Exit code 1 if a request failed, 2 if only lines were wrong.
    """
    with _errors(connection):
        source = sys.stdin.buffer.read() if requests == Path("-") else requests.read_bytes()
        lines = list(read_lines(source, Path() if requests == Path("-") else requests.parent, parents))
        tally = Tally(len(lines))
        for line in lines:
            if isinstance(line, WrongLine):
                tally.wrong_line(line)
        try:
            asyncio.run(paint([line for line in lines if isinstance(line, Line)], connection(), concurrency, tally))
        except KeyboardInterrupt:
            tally.interrupted = True
        console.print(f"instantid: {tally}", highlight=False, soft_wrap=True)
        if tally.exit_code:
            raise typer.Exit(tally.exit_code)


@app.command()
@_flags.with_flags(connection=_flags.connection)
def health(*, connection: Arguments) -> None:
    """Whether the servers answer and the models are ready; exit code 1 unless one of them is."""
    with _errors(connection), InstantIDClient(**connection()) as client:
        state = client.health()
        names = "live", "ready", "model_ready", "triton_version"
        servers = [dataclasses.asdict(server) for server in state.servers]
        typer.echo(json.dumps({**{name: getattr(state, name) for name in names}, "servers": servers}))
        if not (state.ready and state.model_ready):
            raise typer.Exit(FAILED)


@contextmanager
def _errors(connection: Arguments) -> Iterator[None]:
    """An error ends the command with one line and an exit code."""
    try:
        yield
    except (InvalidArgument, TypeError, ValueError, OSError) as error:
        raise _stop(str(error), WRONG) from None
    except InstantIDError as error:
        raise _stop(f"{error}{_hint(error, connection)}", FAILED) from None
    except KeyboardInterrupt:
        raise _stop("interrupted", INTERRUPTED) from None


def _hint(error: InstantIDError, connection: Arguments) -> str:
    if not isinstance(error, Unreachable) or error.sent:
        return ""
    arguments = connection()
    hint = hint_for(arguments["url"][0], arguments["tls"] is not None)
    return f"\n{hint}" if hint else ""


def _photos(photos: list[Path]) -> list[Any]:
    if photos.count(Path("-")) > 1:
        raise ValueError("photo: standard input holds one photo")
    return [sys.stdin.buffer.read() if photo == Path("-") else photo for photo in photos]


def _check_output(output: Path, count: int, options: dict[str, Any], force: bool, parents: bool) -> None:
    """Before anything is sent: the outputs can be written, and the suffix decides the format."""
    if output == Path("-"):
        if count != 1 or sys.stdout.isatty():
            raise ValueError("output: - takes one picture, and no terminal")
        return
    wanted = format_for(output)
    if options.setdefault("output_format", wanted) != wanted:
        raise ValueError(f"{output}: the suffix says {wanted}, --output-format {options['output_format']}")
    for path in output_paths(output, count):
        check_writable(path, parents)
        if path.exists() and not force:
            raise FileExistsError(f"{path} exists; --force overwrites it")


def _progress() -> Progress:
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _print(result: GenerationResult, paths: tuple[Path, ...], as_json: bool) -> None:
    if as_json:
        fields = dataclasses.asdict(result)
        del fields["images"]
        typer.echo(json.dumps({**fields, "files": [str(path) for path in paths]}))
        return
    for path, seed in zip(paths, result.seeds, strict=True):
        typer.echo(f"{path}  seed {seed}  {result.seconds:.1f} s")


def _stop(message: str, code: int) -> typer.Exit:
    console.print(f"instantid: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(code)


def main() -> None:
    app(prog_name="instantid")


if __name__ == "__main__":
    main()
