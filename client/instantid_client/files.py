"""Files of pictures: their names, formats, and how they are written."""

import contextlib
import secrets
import tempfile
from pathlib import Path

SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def output_paths(path: Path, count: int) -> tuple[Path, ...]:
    """Where `count` pictures go: one to `path`, several to `name_0.png`, `name_1.png`, ..."""
    if count == 1:
        return (path,)
    return tuple(path.with_name(f"{path.stem}_{i}{path.suffix}") for i in range(count))


def format_of(image: bytes) -> str:
    """`png`, `jpeg` or `webp` by the first bytes, or empty."""
    if image.startswith(b"\x89PNG"):
        return "png"
    if image.startswith(b"\xff\xd8"):
        return "jpeg"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else ""


def format_for(path: Path) -> str:
    """The format that a file's suffix asks for. Raises ValueError for a suffix that is none of the known ones."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        found = f"the suffix {suffix!r}" if suffix else "no suffix"
        raise ValueError(f"{path}: {found}; must be one of {', '.join(SUFFIXES)}")
    return SUFFIXES[suffix]


def check_format(path: Path, image: bytes) -> None:
    kind, wanted = format_of(image), SUFFIXES.get(path.suffix.lower())
    if kind and wanted and kind != wanted:
        raise ValueError(f"{path}: the picture is {kind}; ask for output_format={wanted!r}, or name the file so")


def check_writable(path: Path, parents: bool = False) -> None:
    """Raise OSError now if a file of this name could not be written later; `parents` makes its folder."""
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")
    with contextlib.suppress(FileNotFoundError):
        path.stat()
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def write_whole(path: Path, data: bytes) -> None:
    """The file appears whole or not at all. Its partial file has a short name of its own, in the same folder."""
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
