"""`python -m build_tools compile`: steps compiled ahead of time, for servers with `INSTANTID_EXECUTION=compiled`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track


def compile_command(
    weights: Annotated[Path, typer.Option(envvar="INSTANTID_WEIGHTS", help="Folder of one set of weights.")] = Path(
        "weights/miniature"
    ),
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1: the kind of device that will serve.")] = "",
    only: Annotated[list[str] | None, typer.Option(help="HEIGHTxWIDTH-ROWS, such as 1024x1024-2; may repeat.")] = None,
) -> None:
    """Compile the steps that a server prepares, minutes each; those that are there already are left alone.

    Reads the same INSTANTID_ variables as the server, and needs a C++ compiler.
    """
    import torch

    from build_tools.compiler import compile_missing
    from instantid.models.compiled import package_folder, package_name
    from instantid.models.measure import planned_sizes
    from instantid.models.setup import load_model, prepared_shapes, use_as_compiled
    from instantid.profile import load_profile
    from instantid.settings import Settings

    settings = Settings(weights=weights)  # type: ignore[call-arg]
    profile = load_profile(settings.weights, settings.few_steps)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.set_num_threads(settings.cpu_threads)
    model = load_model(settings, chosen, profile)
    use_as_compiled(model)
    shapes = prepared_shapes(planned_sizes(profile))
    shapes = [shape for shape in shapes if not only or package_name(shape) in only]
    made = 0
    for _, was_there in track(compile_missing(model, settings.cache_folder, shapes), "compiling", total=len(shapes)):
        made += not was_there
    typer.echo(
        f"{made} compiled, {len(shapes) - made} there already, in {package_folder(settings.cache_folder, model)}"
    )
