"""A set of weights is a folder that appears complete or not at all, with a record of all its files."""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from build_tools.published.manifest import WeightsError
from build_tools.published.transfer import WORKERS, hash_file
from instantid.profile import FILE_NAME as PROFILE
from instantid.settings import CACHE_FOLDER

RECORD = "files.json"
"""Holds size and sha256 of every other file of the set, and what the set was made from."""


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output`. It replaces `output` when the block succeeds, and is removed when it fails.

    Raises WeightsError if `output` holds something that is not a set of weights.
    """
    if output.exists() and any(output.iterdir()) and not (output / PROFILE).exists():
        raise WeightsError(f"{output}: is not a set of weights and is not replaced")
    stage, old = (output.with_name(f".{output.name}.{kind}") for kind in ("partial", "old"))
    for leftover in (stage, old):
        shutil.rmtree(leftover, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        yield stage
        if output.exists():
            output.rename(old)
        stage.rename(output)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock the folder for this process; raises WeightsError while another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".weights.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WeightsError(f"{folder}: another process is making weights here") from error
        yield


def write_record(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Hash every file of a set and write `files.json`. `recipe` says what the set was made from."""
    paths = _files(folder)
    for path in paths:
        if path.stat().st_nlink == 1:
            path.chmod(0o644)
    with ThreadPoolExecutor(WORKERS) as pool:
        hashes = pool.map(hash_file, paths)
        files = {
            path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256}
            for path, sha256 in zip(paths, hashes, strict=True)
        }
    (folder / RECORD).write_text(json.dumps({"recipe": recipe, "files": files}, indent=2) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """Read `files.json`; raises WeightsError if it is missing or broken."""
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: no record of the set's files: {error}") from error
    return record


def is_current(folder: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether the set was made from `recipe` and all its files still have their sizes."""
    try:
        record = read_record(folder)
    except WeightsError:
        return False
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
    return record["recipe"] == dict(recipe) and sizes == {
        name: entry["size"] for name, entry in record["files"].items()
    }


def changes(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """Differences from the record, one line for each file that is missing, not recorded or changed."""
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    recorded: Mapping[str, Mapping[str, Any]] = record["files"]
    lines = [f"{name}: is missing" for name in recorded.keys() - found.keys()]
    lines += [f"{name}: was not there when the set was made" for name in found.keys() - recorded.keys()]
    common = sorted(found.keys() & recorded.keys())
    with ThreadPoolExecutor(WORKERS) as pool:
        hashes = pool.map(hash_file, [found[name] for name in common])
        lines += [
            f"{name}: was changed since the set was made"
            for name, sha256 in zip(common, hashes, strict=True)
            if sha256 != recorded[name]["sha256"]
        ]
    return sorted(lines)


def _files(folder: Path) -> list[Path]:
    """The set's own files, without the record and the cache of servers on this machine."""
    cache = folder / CACHE_FOLDER
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD and cache not in path.parents
    )
