"""The commands `python -m build_tools weights download|full|verify`."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from huggingface_hub.utils import disable_progress_bars
from rich.console import Console

from build_tools.published.checkpoint import hub_source
from build_tools.published.folder import exclusive, is_current
from build_tools.published.manifest import MANIFEST, Source, WeightsError, choose, load_manifest
from build_tools.published.transfer import Hub, check_downloads, check_space, fetch, hash_file, missing_bytes
from instantid.profile import load_profile

Accept = Annotated[
    bool,
    typer.Option(
        "--accept-licence", envvar="INSTANTID_ACCEPT_LICENCE", help="You may use files that are for research only."
    ),
]
With = Annotated[
    list[str], typer.Option("--with", help="lcm, hyper, vae-fp16-fix, or a LoRA file of your own; may be repeated.")
]
Checkpoint = Annotated[
    str,
    typer.Option(help="Your own SDXL: a diffusers folder, or owner/name or owner/name@revision on the hub."),
]
Faces = Annotated[
    tuple[Path, Path] | None, typer.Option(metavar="DETECTOR RECOGNISER", help="Your own SCRFD and ArcFace, ONNX.")
]
Dtype = Annotated[Literal["float16", "bfloat16", "float32"], typer.Option(help="Stored type of the networks' floats.")]
FULL = Path("weights/full")
ManifestFile = Annotated[Path, typer.Option(help="What is published where, with checksums.")]


@dataclass(frozen=True, slots=True)
class Selection:
    """The operator's options, before anything is looked up."""

    checkpoint: str = ""
    faces: tuple[Path, Path] | None = None
    extras: Sequence[str] = ()
    dtype: str = "float16"
    manifest: Path = MANIFEST

    @property
    def loras(self) -> list[Path]:
        return [Path(extra) for extra in self.extras if extra.endswith(".safetensors")]

    @property
    def own_checkpoint(self) -> Path | None:
        path = Path(self.checkpoint)
        return path if self.checkpoint and path.exists() else None

    def recipe(self) -> dict[str, Any]:
        """What the set is made from: two sets with equal recipes have equal contents."""
        own = [path for path in (self.own_checkpoint, *(self.faces or ()), *self.loras) if path]
        return {
            "manifest": hash_file(self.manifest),
            "checkpoint": self.checkpoint,
            "with": list(self.extras),
            "dtype": self.dtype,
            "own files": [[str(path), path.stat().st_mtime_ns] for path in own],
        }

    def check(self) -> None:
        for path in (*(self.faces or ()), *self.loras):
            if not path.is_file():
                raise WeightsError(f"{path}: no such file")
        if self.own_checkpoint and self.own_checkpoint.is_file():
            raise WeightsError(
                f"{self.checkpoint}: one file is served as it is: INSTANTID_CHECKPOINT={self.checkpoint}"
            )

    def sources(self, hub: Hub | None) -> list[Source]:
        """What to take from the hub, or from a mirror of it if `hub` is None."""
        replaced = ["sdxl"] * bool(self.checkpoint) + ["antelopev2"] * bool(self.faces)
        optional = [extra for extra in self.extras if not extra.endswith(".safetensors")]
        sources = choose(load_manifest(self.manifest), optional, replaced)
        if self.checkpoint and not self.own_checkpoint:
            if hub is None:
                raise WeightsError(f"checkpoint {self.checkpoint}: no such folder or file; without the hub name one")
            sources.insert(0, hub_source(self.checkpoint, hub))
        return sources


def download_command(
    output: Annotated[Path, typer.Option(help="Folder of downloads; serves as a mirror.")] = Path("weights/published"),
    accept_licence: Accept = False,
    checkpoint: Checkpoint = "",
    with_: With = [],  # noqa: B006
    manifest: ManifestFile = MANIFEST,
) -> None:
    """Download and check the published files, resuming earlier downloads, into a folder that `full --mirror` reads."""
    choice = Selection(checkpoint, None, with_, manifest=manifest)
    with _reporting() as console, exclusive(output):
        choice.check()
        sources = choice.sources(Hub())
        _show_licences(sources, accept_licence, console)
        _download(sources, output, 0, console)
    console.print(f"published files in {output}")


def full_command(
    output: Annotated[Path, typer.Option(help="Folder of the set.")] = FULL,
    accept_licence: Accept = False,
    mirror: Annotated[Path | None, typer.Option(help="Take the files from this folder, not from the hub.")] = None,
    checkpoint: Checkpoint = "",
    faces: Faces = None,
    with_: With = [],  # noqa: B006
    dtype: Dtype = "float16",
    manifest: ManifestFile = MANIFEST,
) -> None:
    """Download, convert and verify. Does nothing if the set is already there and was made in the same way."""
    _make(Selection(checkpoint, faces, with_, dtype, manifest), output, accept_licence, mirror)


def verify_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a set.")] = FULL,
    load: Annotated[bool, typer.Option("--load", help="Also read the networks and run the face graph.")] = False,
) -> None:
    """Check that a set is complete, unchanged and loadable, and print its licences."""
    with _reporting() as console:
        _verify(folder, load, console)


def _make(choice: Selection, output: Path, accepted: bool, published: Path | None) -> None:
    from build_tools.published.assemble import Ingredients, assemble

    with _reporting() as console, exclusive(output.parent):
        choice.check()
        if is_current(output, choice.recipe()):
            console.print(f"{output}: already there, made the same way")
            return
        hub = Hub() if published is None else None
        downloads = published or output.parent / "published"
        sources = choice.sources(hub)
        _show_licences(sources, accepted, console)
        ingredients = Ingredients(sources, downloads, choice.dtype, choice.own_checkpoint, choice.faces, choice.loras)
        if hub:
            _download(sources, downloads, ingredients.disk_needed(output), console)
        else:
            check_space(output, ingredients.disk_needed(output))
            console.print(f"checking the files in {downloads}")
            check_downloads(sources, downloads)
        assemble(ingredients, output, choice.recipe(), lambda part: console.print(f"making the set: {part}"))
        _verify(output, False, console)


def _download(sources: Sequence[Source], folder: Path, then: int, console: Console) -> None:
    """Fetch `sources` into `folder` if the disk also has room for the `then` bytes that are needed afterwards."""
    check_space(folder, missing_bytes(sources, folder) + then)
    if not console.is_terminal:
        disable_progress_bars()
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        fetch(sources, folder, Hub(), console.print)
    finally:
        signal.signal(signal.SIGINT, handler)


def _show_licences(sources: Sequence[Source], accepted: bool, console: Console) -> None:
    for source in sources:
        console.print(f"{source.name}: {source.size / 1e9:.2f} GB, {source.repository}: {source.licence}")
        if source.optional:
            console.print(f"    {source.optional}")
    if not accepted and (names := [source.name for source in sources if source.must_accept]):
        raise WeightsError(f"{', '.join(names)}: if you may use them under these terms, add --accept-licence")


def _verify(folder: Path, load: bool, console: Console) -> None:
    from build_tools.published.verify import verify

    console.print(f"verifying {folder}" + (", which takes minutes" if load else ""))
    problems = verify(folder, load)
    for licence in load_profile(folder).licences:
        console.print(f"licence: {licence}")
    if problems:
        raise WeightsError("\n".join([f"{folder}: {len(problems)} problems", *problems]))
    console.print(f"{folder}: complete, untouched" + (", loaded" if load else ", loadable"))


@contextmanager
def _reporting() -> Iterator[Console]:
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        yield console
    except (WeightsError, ValueError, OSError) as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(1) from error
