"""Assembles a set of weights, in the layout that serving reads, from published files and a user's own."""

import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from build_tools.convert import convert_adapter, convert_floats, has_floats_other_than
from build_tools.face_graph import build_face_graph
from build_tools.published.checkpoint import local_files
from build_tools.published.folder import staged, write_record
from build_tools.published.manifest import PublishedFile, Source, WeightsError
from build_tools.published.transfer import Progress, check
from instantid.profile import SDXL, Profile

AS_PUBLISHED = ("sdxl/vae/", "lora/")
"""These keep the type they are published in: the VAE may decode in float32, and LoRAs are fused in float32."""


@dataclass(frozen=True, slots=True)
class Ingredients:
    """The files that a set is made from: those of `sources` in the folder `published`, and a user's own.

    `dtype` is the name of a torch float type.
    """

    sources: Sequence[Source]
    published: Path
    dtype: str
    checkpoint: Path | None = None
    faces: tuple[Path, Path] | None = None
    loras: Sequence[Path] = ()

    @property
    def licences(self) -> tuple[str, ...]:
        lines = [f"{source.repository}: {source.licence}" for source in self.sources]
        own = [path for path in (self.checkpoint, *(self.faces or ()), *self.loras) if path]
        return (*lines, *(f"{path.name}: your own file, licence not known here" for path in own))

    def disk_needed(self, output: Path) -> int:
        """An upper bound of the bytes that the set adds to the disk of `output`; files on that disk are linked."""
        near = next(parent for parent in (output, *output.absolute().parents) if parent.exists())
        same_disk = self.published.exists() and near.stat().st_dev == self.published.stat().st_dev
        members = 2 * sum(member.size or 0 for _, file in self._files() for member in file.members)
        whole = sum(file.size or 0 for _, file in self._files() if not (same_disk and _is_linked(file)))
        own = [path for path in (self.checkpoint, *(self.faces or ()), *self.loras) if path]
        return members + whole + sum(_bytes(path) for path in own)

    def _files(self) -> Iterator[tuple[Source, PublishedFile]]:
        return ((source, file) for source in self.sources for file in source.files)


def assemble(
    ingredients: Ingredients, output: Path, recipe: Mapping[str, Any], progress: Progress = lambda part: None
) -> None:
    """Make the set `output`, which appears complete or not at all.

    Floats other than those of the VAE and of LoRAs are stored in `dtype`. Raises WeightsError or ValueError, naming
    the file, for one that is missing or not of its form.
    """
    dtype: torch.dtype = getattr(torch, ingredients.dtype)
    with staged(output) as stage:
        for origin, to in _placements(ingredients):
            progress(to)
            place(origin, stage / to, None if to.startswith(AS_PUBLISHED) else dtype)
        for source in ingredients.sources:
            for file in source.files:
                extract(source.local(ingredients.published, file), file.members, stage)
        progress("face graph")
        faces = stage / "face"
        build_face_graph(faces / "detector.onnx", faces / "recogniser.onnx", stage / "face_analysis.onnx")
        Profile(name=output.name, licences=ingredients.licences, **SDXL).save(stage)
        progress("checksums")
        write_record(stage, recipe)


def place(origin: Path, target: Path, dtype: torch.dtype | None) -> None:
    """Put one file into a set. Pickles and floats of other types are converted; other files are linked or copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if origin.suffix == ".bin":
        convert_adapter(origin, target, dtype)
    elif origin.suffix == ".safetensors" and dtype is not None and has_floats_other_than(origin, dtype):
        convert_floats(origin, target, dtype)
    else:
        _link(origin.resolve(), target)


def extract(archive: Path, members: Sequence[PublishedFile], folder: Path) -> None:
    """Extract `members` from a zip file, whichever folder inside it they are in, and check them."""
    if not members:
        return
    with zipfile.ZipFile(archive) as packed:
        for member in members:
            names = [name for name in packed.namelist() if PurePosixPath(name).name == member.path]
            if len(names) != 1:
                raise WeightsError(f"{archive}: holds {len(names)} files named {member.path}, expected one")
            target = folder / str(member.to)
            target.parent.mkdir(parents=True, exist_ok=True)
            with packed.open(names[0]) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
            check(target, member.size, member.sha256, f"{archive}: {member.path}")


def _placements(ingredients: Ingredients) -> Iterator[tuple[Path, str]]:
    for source in ingredients.sources:
        yield from ((source.local(ingredients.published, file), file.to) for file in source.files if file.to)
    if ingredients.checkpoint:
        yield from ((path, f"sdxl/{to}") for path, to in local_files(ingredients.checkpoint).items())
    if ingredients.faces:
        yield from zip(ingredients.faces, ("face/detector.onnx", "face/recogniser.onnx"), strict=True)
    yield from ((path, f"lora/{path.name}") for path in ingredients.loras)


def _is_linked(file: PublishedFile) -> bool:
    return bool(file.to) and not file.path.endswith(".bin")


def _link(origin: Path, target: Path) -> None:
    if target.exists():
        raise WeightsError(f"{origin}: a second file for {target.parent.name}/{target.name}")
    try:
        os.link(origin, target)
    except OSError:
        shutil.copyfile(origin, target)


def _bytes(path: Path) -> int:
    files = path.rglob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.exists())
