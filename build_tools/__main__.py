"""`python -m build_tools <verb>`: weights, face graph, configurations, embedded server, demo."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from build_tools.compile import compile_command
from build_tools.embedded.serve import serve_command
from build_tools.published.cli import download_command, full_command, verify_command

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
weights = typer.Typer(no_args_is_help=True, help="Make one set of weights in its own folder, or verify one.")
app.add_typer(weights, name="weights")
app.command("serve")(serve_command)
app.command("compile")(compile_command)
weights.command("full")(full_command)
weights.command("download")(download_command)
weights.command("verify")(verify_command)


@weights.command()
def miniature(
    output: Annotated[Path, typer.Option(help="Folder of the set.")] = Path("weights/miniature"),
) -> None:
    """Make the miniature: the published architectures at small size, trained by this project. Replaces the folder."""
    from build_tools.weights import make_miniature

    console = Console(stderr=True, highlight=False)
    make_miniature(output, lambda part: console.print(f"miniature weights: {part}"))
    console.print(f"miniature weights: in {output}")


@app.command("face-graph")
def face_graph(
    detector: Annotated[Path, typer.Argument(help="SCRFD with landmarks, ONNX.")],
    recogniser: Annotated[Path, typer.Argument(help="ArcFace for 112x112, ONNX.")],
    output: Annotated[Path, typer.Option(help="The fused file.")] = Path("model_repository/face_analysis/1/model.onnx"),
    detection: Annotated[Literal["surest", "reference"], typer.Option(help="Which size's faces are taken.")] = "surest",
    border: Annotated[Literal["black", "edge"], typer.Option(help="What fills a crop beyond the photo.")] = "black",
) -> None:
    """Fuse a detector and a recogniser into one ONNX file, from pixels to embeddings."""
    from build_tools.face_graph import build_face_graph

    output.parent.mkdir(parents=True, exist_ok=True)
    build_face_graph(detector, recogniser, output, detection=detection, border=border)


@app.command()
def configs(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit code 1 if a file would change.")] = False,
) -> None:
    """Write what repeats the contract: config.pbtxt files, the request's fields, the client's copy, tables in pages."""
    from build_tools.configs import write_configs

    for path in (stale := write_configs(check=check)):
        typer.echo(path)
    raise typer.Exit(int(check and bool(stale)))


@app.command()
def demo(
    weights: Annotated[Path, typer.Option(help="Folder of one set of weights.")] = Path("weights/miniature"),
    output: Annotated[Path, typer.Option(help="Receives the pictures.")] = Path("out"),
) -> None:
    """Serve, paint three people in two scenes each, write pictures and a sheet, and print the time of each stage."""
    from build_tools.demo import run_demo

    run_demo(weights, output)


if __name__ == "__main__":
    app(prog_name="python -m build_tools")
