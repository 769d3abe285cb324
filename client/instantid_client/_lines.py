"""A file of JSON lines for `instantid batch`: every line is checked before the first is sent."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instantid_client._values import check_values
from instantid_client.batch import CAUGHT, BatchRequest
from instantid_client.errors import invalid
from instantid_client.files import check_writable, format_for, output_paths
from instantid_client.photos import check_size

BOM = b"\xef\xbb\xbf"
FIELDS = "photo", "prompt", "output"


@dataclass(frozen=True, slots=True)
class Line:
    """One request; its photos lie beside the file, as does `output`. `paths` are the files that it makes."""

    number: int
    request: BatchRequest
    output: Path
    paths: tuple[Path, ...]

    @property
    def is_done(self) -> bool:
        return all(path.exists() for path in self.paths)


@dataclass(frozen=True, slots=True)
class WrongLine:
    number: int
    error: Exception


def read_lines(data: bytes, folder: Path, parents: bool = False) -> Iterator[Line | WrongLine]:
    """Lines end at `\\n` and nowhere else, so that a text may hold any other separator; a BOM is skipped."""
    taken: dict[str, int] = {}
    for number, text in enumerate(data.removeprefix(BOM).split(b"\n"), 1):
        if text.strip():
            try:
                line = _parse(number, text, folder)
                _claim(line, taken)
                for path in line.paths:
                    check_writable(path, parents)
                yield line
            except (*CAUGHT, RecursionError) as error:
                yield WrongLine(number, error)


def _parse(number: int, text: bytes, folder: Path) -> Line:
    fields = json.loads(text.decode("utf-8"))
    if not isinstance(fields, dict):
        raise invalid("line", f"a JSON {type(fields).__name__}", "must be an object")
    for name in FIELDS:
        if name not in fields:
            raise invalid(name, "missing", "is required")
    output = _path(folder, "output", fields.pop("output"))
    wanted = format_for(output)
    if fields.setdefault("output_format", wanted) not in (wanted, None):
        raise invalid(
            "output_format", repr(fields["output_format"]), f"must be {wanted!r}, as the output's suffix says"
        )
    photos = fields["photo"] if isinstance(fields["photo"], list) else [fields["photo"]]
    fields["photo"] = [_photo(folder, f"photo[{i}]", name) for i, name in enumerate(photos)]
    if fields.get("pose_photo") is not None:
        fields["pose_photo"] = _photo(folder, "pose_photo", fields["pose_photo"])
    checked = check_values(fields)
    count = checked.get("num_images_per_prompt", 1)
    if "prompt" not in checked:
        raise invalid("prompt", "null", "is required")
    request: Any = checked
    return Line(number, request, output, output_paths(output, count))


def _photo(folder: Path, field: str, name: Any) -> Path:
    path = _path(folder, field, name)
    if not path.is_file():
        raise FileNotFoundError(f"{field}: {path}: no such file")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{field}: {path}: cannot be read")
    check_size(path.stat().st_size, field)
    return path


def _path(folder: Path, field: str, name: Any) -> Path:
    if not isinstance(name, str) or not name or "\0" in name:
        raise invalid(field, repr(name)[:64], "must be the name of a file")
    os.fsencode(name)
    return folder / name


def _claim(line: Line, taken: dict[str, int]) -> None:
    for path in line.paths:
        first = taken.setdefault(os.path.realpath(path), line.number)
        if first != line.number:
            raise invalid("output", str(path), f"line {first} has it already")
