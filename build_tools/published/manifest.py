"""What is published where: `build_tools/weights.toml` read into objects and checked."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MANIFEST = Path(__file__).parents[1] / "weights.toml"
UNPUBLISHED = "unpublished"


class WeightsError(Exception):
    """Something about weights that the operator can act on; the message names file and cause."""


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """One file of a repository, or one member of an archive (`to`: its place in a set of weights).

    `size` in bytes and `sha256` are None where no public source gives them.
    """

    path: str
    to: str | None = None
    size: int | None = None
    sha256: str | None = None
    members: tuple["PublishedFile", ...] = ()

    @property
    def places(self) -> tuple[str, ...]:
        """Every place in a set of weights that this file fills."""
        return (self.to,) if self.to else tuple(place for member in self.members for place in member.places)


@dataclass(frozen=True, slots=True)
class Source:
    """Files of one hub repository at one commit; `optional` says what it is for, empty for what every set needs."""

    name: str
    repository: str
    revision: str
    licence: str
    must_accept: bool
    files: tuple[PublishedFile, ...]
    optional: str = ""

    @property
    def size(self) -> int:
        """Bytes to download, as far as sizes are published."""
        return sum(file.size or 0 for file in self.files)

    def local(self, folder: Path, file: PublishedFile) -> Path:
        """Where a file lies in a folder of downloads or in a mirror."""
        return folder / self.repository / file.path


def load_manifest(path: Path = MANIFEST) -> dict[str, Source]:
    """All sources by name.

    Raises WeightsError, naming the entry, for a field that is missing, unknown or not of its form.
    """
    tables = tomllib.loads(path.read_text())
    return {name: _source(name, table, f"{path.name}: {name}") for name, table in tables.items()}


def choose(manifest: Mapping[str, Source], optional: Sequence[str], replaced: Sequence[str]) -> list[Source]:
    """The sources of a set: what every set needs but `replaced`, and the `optional` ones named.

    A file whose place an optional source fills is left out. Raises WeightsError for an unknown name.
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


def _source(name: str, table: Mapping[str, Any], where: str) -> Source:
    fields = {"repository", "revision", "licence", "must_accept", "files"}
    _check_fields(table, fields, fields | {"optional"}, where)
    if not re.fullmatch(r"[0-9a-f]{40}", table["revision"]):
        raise WeightsError(f"{where}: revision {table['revision']!r} is not a full commit")
    files = tuple(_file(entry, where) for entry in table["files"])
    return Source(name, **{**table, "files": files})


def _file(table: Mapping[str, Any], where: str) -> PublishedFile:
    where = f"{where}, {table.get('path', 'a file without path')}"
    _check_fields(table, {"path", "size", "sha256"}, {"path", "size", "sha256", "to", "members"}, where)
    if ("to" in table) == ("members" in table):
        raise WeightsError(f"{where}: needs either to or members")
    size, sha256 = (None if table[key] == UNPUBLISHED else table[key] for key in ("size", "sha256"))
    if not (size is None or (isinstance(size, int) and size > 0)):
        raise WeightsError(f"{where}: size {size!r} is neither bytes nor {UNPUBLISHED!r}")
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise WeightsError(f"{where}: sha256 {sha256!r} is neither 64 hexadecimal digits nor {UNPUBLISHED!r}")
    members = tuple(_file(member, where) for member in table.get("members", ()))
    return PublishedFile(table["path"], table.get("to"), size, sha256, members)


def _check_fields(table: Mapping[str, Any], needed: set[str], known: set[str], where: str) -> None:
    if missing := sorted(needed - set(table)):
        raise WeightsError(f"{where}: {missing[0]} is missing")
    if unknown := sorted(set(table) - known):
        raise WeightsError(f"{where}: unknown field {unknown[0]}")
