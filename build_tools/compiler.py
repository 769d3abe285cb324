"""Compiles steps ahead of time by AOTInductor; `instantid.models.compiled` loads what is written here."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from instantid.models.compiled import (
    Shape,
    Step,
    example_inputs,
    file_sha256,
    leaves,
    note_of,
    package_folder,
    package_name,
)

OPTIONS = {"aot_inductor.package_constants_in_so": False, "aot_inductor.use_runtime_constant_folding": False}


def compile_missing(model: Any, cache: Path, shapes: Sequence[Shape]) -> Iterator[tuple[Path, bool]]:
    """Write the packages that are not there yet; yields each path before it is made and whether it is there."""
    folder = package_folder(cache, model)
    folder.mkdir(parents=True, exist_ok=True)
    for size, rows in shapes:
        path = folder / f"{package_name((size, rows))}.pt2"
        there = note_of(path).exists()
        yield path, there
        if not there:
            compile_step(model, model.example(size, rows), path)


@torch.no_grad()
def compile_step(model: Any, states: Sequence[Any], path: Path) -> None:
    """Write the package of a step of these states to `path`, and beside it a note of what was written.

    Takes minutes, and a C++ compiler. The note is written last.
    """
    inputs = example_inputs(model, states)
    program = torch.export.export(Step(model, inputs).eval(), leaves(inputs))
    partial = path.with_name(f"partial-{path.name}")
    torch._inductor.aoti_compile_and_package(program, package_path=str(partial), inductor_configs=OPTIONS)
    partial.replace(path)
    written = note_of(path).with_suffix(".partial")
    written.write_bytes(file_sha256(path))
    written.replace(note_of(path))
