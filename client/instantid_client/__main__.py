"""The command `instantid`. Exit codes: 0 done, 1 the server or the connection failed, 2 the request is wrong."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from instantid_client.batch import run_batch
from instantid_client.client import DEFAULT_TIMEOUT, TLS, InstantIDClient, Routing
from instantid_client.errors import InstantIDError, InvalidArgument
from instantid_client.results import GenerationResult, numbered

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)

Url = Annotated[str, typer.Option(help="gRPC address, host:port.", envvar="INSTANTID_URL")]
Timeout = Annotated[float, typer.Option(help="Seconds after which a request is given up.", min=0.001)]
Header = Annotated[list[str] | None, typer.Option("--header", help="NAME=VALUE sent with every call; may repeat.")]
Tls = Annotated[bool, typer.Option("--tls", help="Encrypt; with --ca-certificate trust that authority.")]
Authority = Annotated[Path | None, typer.Option(help="PEM file of the authority to trust.")]
Tenant = Annotated[str | None, typer.Option(help="Name of the tenant.")]
Priority = Annotated[int | None, typer.Option(help="1 is the most urgent.", min=1, max=3)]


@contextmanager
def connect(
    url: str, timeout: float, headers: list[str] | None, tls: bool, authority: Path | None, routing: Routing
) -> Iterator[InstantIDClient]:
    """A client whose errors end the command with one line and an exit code."""
    try:
        metadata = dict(_header(text) for text in headers or [])
        secured = TLS(root_certificates=authority) if tls or authority else None
        with InstantIDClient(url, timeout=timeout, tls=secured, metadata=metadata, routing=routing) as client:
            yield client
    except (InvalidArgument, TypeError, OSError) as error:
        raise _stop(error, 2) from None
    except InstantIDError as error:
        raise _stop(error, 1) from None


@app.command()
def generate(  # noqa: PLR0913 - one parameter for each option of the contract
    photo: Annotated[list[Path], typer.Argument(help="1..4 photos of one person.", exists=True, dir_okay=False)],
    prompt: Annotated[str, typer.Option(help="What to paint.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the picture goes.")],
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid.")] = None,
    pose_photo: Annotated[Path | None, typer.Option(help="Photo whose face gives the landmarks.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 64.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 64.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="1..100")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="1..20")] = None,
    ip_adapter_scale: Annotated[float | None, typer.Option(help="0..1.5, likeness.")] = None,
    controlnet_conditioning_scale: Annotated[float | None, typer.Option(help="0..1.5, placement.")] = None,
    control_guidance_start: Annotated[float | None, typer.Option(help="0..1")] = None,
    control_guidance_end: Annotated[float | None, typer.Option(help="0..1")] = None,
    scheduler: Annotated[str | None, typer.Option(help="euler, dpmpp_2m, unipc, lcm, ...")] = None,
    num_images_per_prompt: Annotated[int | None, typer.Option(help="1..4")] = None,
    seed: Annotated[int | None, typer.Option(help="Drawn if not given.")] = None,
    output_format: Annotated[str | None, typer.Option(help="png, jpeg or webp; else by the file's name.")] = None,
    output_quality: Annotated[int | None, typer.Option(help="1..100")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print seeds and face report as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    url: Url = "localhost:8001",
    timeout: Timeout = DEFAULT_TIMEOUT,
    header: Header = None,
    tls: Tls = False,
    ca_certificate: Authority = None,
    tenant: Tenant = None,
    priority: Priority = None,
) -> None:
    """One request: a picture of the person in PHOTO."""
    options = _given(
        negative_prompt=negative_prompt,
        pose_photo=pose_photo,
        width=width,
        height=height,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        ip_adapter_scale=ip_adapter_scale,
        controlnet_conditioning_scale=controlnet_conditioning_scale,
        control_guidance_start=control_guidance_start,
        control_guidance_end=control_guidance_end,
        scheduler=scheduler,
        num_images_per_prompt=num_images_per_prompt,
        seed=seed,
        output_format=output_format or format_of(output),
        output_quality=output_quality,
    )
    if not force:
        _refuse_existing(output, num_images_per_prompt or 1)
    with connect(url, timeout, header, tls, ca_certificate, Routing(tenant, priority)) as client:
        with _progress() as progress:
            progress.add_task(f"waiting for {url}")
            result = client.generate(photo, prompt, **options)
        paths = result.save(output)
    _print(result, paths, as_json)


@app.command()
def batch(
    requests: Annotated[Path, typer.Argument(help="JSON lines: photo, prompt, output and options.", exists=True)],
    concurrency: Annotated[int, typer.Option(help="Requests at once.", min=1, max=256)] = 4,
    url: Url = "localhost:8001",
    timeout: Timeout = DEFAULT_TIMEOUT,
    header: Header = None,
    tls: Tls = False,
    ca_certificate: Authority = None,
    tenant: Tenant = None,
) -> None:
    """Many requests from a file; goes on after errors, skips outputs that exist, prints one JSON line each."""
    with connect(url, timeout, header, tls, ca_certificate, Routing(tenant)) as client:
        failed = run_batch(client, requests, concurrency, console)
    if failed:
        raise typer.Exit(1)


@app.command()
def health(
    url: Url = "localhost:8001", header: Header = None, tls: Tls = False, ca_certificate: Authority = None
) -> None:
    """Whether the server answers and the models are ready; exit code 1 if not."""
    with connect(url, 5.0, header, tls, ca_certificate, Routing()) as client:
        state = client.health()
    typer.echo(json.dumps(dataclasses.asdict(state)))
    if not (state.ready and state.model_ready):
        raise typer.Exit(1)


def format_of(path: Path) -> str | None:
    """The format that a file's name asks for."""
    return {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}.get(path.suffix.lower())


def _given(**options: Any) -> Any:
    return {name: value for name, value in options.items() if value is not None}


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise TypeError(f"--header {text!r}: must be NAME=VALUE")
    return name.strip().lower(), value


def _refuse_existing(output: Path, images: int) -> None:
    for path in [output] if images == 1 else [numbered(output, i) for i in range(images)]:
        if path.exists():
            raise _stop(f"{path} exists; --force overwrites it", 2)


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    )


def _print(result: GenerationResult, paths: tuple[Path, ...], as_json: bool) -> None:
    if as_json:
        fields = dataclasses.asdict(result)
        del fields["images"]
        typer.echo(json.dumps({**fields, "files": [str(path) for path in paths]}))
        return
    for path, seed in zip(paths, result.seeds, strict=True):
        typer.echo(f"{path}  seed {seed}  {result.seconds:.1f} s")


def _stop(error: Exception | str, code: int) -> typer.Exit:
    console.print(f"instantid: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(code)


def main() -> None:
    app(prog_name="instantid")


if __name__ == "__main__":
    main()
