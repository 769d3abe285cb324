"""The manifest `build_tools/weights.toml`, which says what is published where, as checked objects."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

MANIFEST = Path(__file__).parents[1] / "weights.toml"


class WeightsError(Exception):
    """A problem with weights that the operator can solve; the message names file and cause."""


Unpublished = BeforeValidator(lambda value: None if value == "unpublished" else value)
_strict_dataclass = dataclass(frozen=True, slots=True, config={"extra": "forbid"})


@_strict_dataclass
class PublishedFile:
    """One file of a repository, or one member of an archive.

    `size` in bytes and `sha256` are None where no public source gives them. `to` is the file's place in a set of
    weights; an archive has `members` instead.
    """

    path: str
    size: Annotated[Annotated[int, Field(gt=0)] | None, Unpublished]
    sha256: Annotated[Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None, Unpublished]
    to: str | None = None
    members: tuple["PublishedFile", ...] = ()

    def __post_init__(self) -> None:
        if bool(self.to) == bool(self.members):
            raise ValueError(f"{self.path}: needs either to or members")

    @property
    def places(self) -> tuple[str, ...]:
        """The places of this file or of its members in a set of weights."""
        return (self.to,) if self.to else tuple(place for member in self.members for place in member.places)


@_strict_dataclass
class Source:
    """Files of one hub repository at one commit. `optional` is their purpose, or empty if every set needs them."""

    name: str
    repository: str
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
    licence: str
    must_accept: bool
    files: tuple[PublishedFile, ...]
    optional: str = ""

    @property
    def size(self) -> int:
        """Bytes to download, without the files whose size is not published."""
        return sum(file.size or 0 for file in self.files)

    def local(self, folder: Path, file: PublishedFile) -> Path:
        """The path of a file in a folder of downloads or in a mirror."""
        return folder / self.repository / file.path


def load_manifest(path: Path = MANIFEST) -> dict[str, Source]:
    """Read all sources, by name.

    Raises WeightsError, naming entry and field, for a field that is missing, unknown or not of its form.
    """
    tables = {name: {"name": name, **table} for name, table in tomllib.loads(path.read_text()).items()}
    try:
        return TypeAdapter(dict[str, Source]).validate_python(tables)
    except ValidationError as error:
        first = error.errors()[0]
        raise WeightsError(f"{path.name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def choose(manifest: Mapping[str, Source], optional: Sequence[str], replaced: Sequence[str]) -> list[Source]:
    """The sources of a set: the ones every set needs without the `replaced` ones, and the named `optional` ones.

    A file is left out if an optional source has one for the same place. Raises WeightsError for an unknown name.
    """
    for name in optional:
        if name not in manifest or not manifest[name].optional:
            known = ", ".join(source.name for source in manifest.values() if source.optional)
            raise WeightsError(f"--with {name}: is neither a file nor one of {known}")
    extra = [manifest[name] for name in optional]
    filled = {place for source in extra for file in source.files for place in file.places}
    needed = [source for source in manifest.values() if not source.optional and source.name not in replaced]
    return [*(_without(source, filled) for source in needed), *extra]


def _without(source: Source, filled: set[str]) -> Source:
    return replace(source, files=tuple(file for file in source.files if not filled.issuperset(file.places)))
