"""Downloads published files from a hub, several at once. A file gets its final name only after it is checked."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from build_tools.published.manifest import PublishedFile, Source, WeightsError

LOCK = "weights.lock.json"
"""A file in a folder of downloads. It records size and sha256 at the first download where they are not published."""
WORKERS = 4
REPORT_SECONDS = 60.0
_RANGE_NOT_SATISFIABLE = 416

Progress = Callable[[str], None]
Job = tuple[Source, PublishedFile]


@dataclass(frozen=True, slots=True)
class Hub:
    """The hub to download from. An `endpoint` of None means huggingface_hub's own setting (HF_ENDPOINT)."""

    endpoint: str | None = None

    def get(self, job: Job, partial: Path) -> None:
        """Append the missing bytes to `partial`. huggingface_hub resumes a dropped connection a few times."""
        source, file = job
        url = hf_hub_url(source.repository, file.path, revision=source.revision, endpoint=self.endpoint)
        with partial.open("ab") as stream:
            http_get(
                url,
                stream,
                resume_size=stream.tell(),
                headers={**build_hf_headers(library_name="instantid"), "Accept-Encoding": "identity"},
                expected_size=file.size,
                displayed_filename=file.path,
            )


def fetch(sources: Sequence[Source], folder: Path, hub: Hub, progress: Progress) -> None:
    """Download every file of `sources` into `folder`, except complete ones that are already there.

    If a file fails, the others are finished, and then WeightsError names each failed file. An interrupted download
    stays in a file that ends in `.partial`, and the next run continues it.
    """
    jobs = [(source, file) for source in sources for file in source.files]
    failures: list[str] = []
    with ThreadPoolExecutor(WORKERS) as pool:
        tasks = {pool.submit(_fetch, job, folder, hub): job for job in jobs}
        pending = set(tasks)
        while pending:
            done, pending = wait(pending, timeout=REPORT_SECONDS, return_when=FIRST_COMPLETED)
            if not done:
                progress(f"{missing_bytes(sources, folder) / 1e9:.2f} GB left")
            for task in done:
                source, file = tasks[task]
                try:
                    task.result()
                    progress(f"have {source.repository}/{file.path}")
                except WeightsError as error:
                    failures.append(str(error))
                    progress(f"failed: {error}")
    record(jobs, folder)
    if failures:
        raise WeightsError("\n".join([f"{len(failures)} of {len(jobs)} files failed:", *sorted(failures)]))


def missing_bytes(sources: Sequence[Source], folder: Path) -> int:
    """Bytes that are still to download, without the files whose size is not published."""
    total = 0
    for source in sources:
        for file in source.files:
            place = source.local(folder, file)
            if not place.exists():
                total += max((file.size or 0) - _size(_partial(place)), 0)
    return total


def check_space(folder: Path, needed: int) -> None:
    """Raise WeightsError if the disk of `folder`, which need not exist, has less than `needed` bytes free."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise WeightsError(f"{folder}: needs {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free")


def check(path: Path, size: int | None, sha256: str | None, name: str = "") -> None:
    """Raise WeightsError, with `name` or the path, if a file is missing or differs from the published one."""
    name = name or str(path)
    if not path.is_file():
        raise WeightsError(f"{name}: is missing")
    if size is not None and path.stat().st_size != size:
        raise WeightsError(f"{name}: is {path.stat().st_size} bytes long, expected {size}")
    if sha256 is not None and (found := hash_file(path)) != sha256:
        raise WeightsError(f"{name}: wrong checksum: sha256 is {found}, expected {sha256}")


def check_downloads(sources: Sequence[Source], folder: Path) -> None:
    """Check all files of `sources` in a folder of downloads or a mirror. Raises WeightsError for a wrong one."""
    known = read_lock(folder)
    jobs = [(source, file) for source in sources for file in source.files]
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda job: check(job[0].local(folder, job[1]), *_expected(job, known)), jobs))


def hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_lock(folder: Path) -> dict[str, dict[str, int | str]]:
    path = folder / LOCK
    entries: dict[str, dict[str, int | str]] = json.loads(path.read_text()) if path.exists() else {}
    return entries


def record(jobs: Sequence[Job], folder: Path) -> None:
    """Record size and sha256 of files for which none is published. Earlier records stay."""
    known = read_lock(folder)
    unpublished = {_key(job): job[0].local(folder, job[1]) for job in jobs if None in (job[1].size, job[1].sha256)}
    new = {
        key: {"size": path.stat().st_size, "sha256": hash_file(path)}
        for key, path in unpublished.items()
        if key not in known and path.exists()
    }
    if new:
        partial = folder / f"{LOCK}.partial"
        partial.write_text(json.dumps({**known, **new}, indent=2) + "\n")
        partial.replace(folder / LOCK)


def _fetch(job: Job, folder: Path, hub: Hub) -> None:
    source, file = job
    place, (size, sha256) = source.local(folder, file), _expected(job, read_lock(folder))
    try:
        if place.exists() and _is_whole(place, size, sha256):
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        _download(job, _partial(place), hub, size)
        _accept(_partial(place), place, size, sha256)
    except (OSError, httpx2.HTTPError, OfflineModeIsEnabled) as error:
        raise WeightsError(f"{source.repository}/{file.path}: {_reason(error)}") from error


def _download(job: Job, partial: Path, hub: Hub, size: int | None) -> None:
    if size is not None and _size(partial) > size:
        partial.unlink()
    try:
        hub.get(job, partial)
    except HfHubHTTPError as error:
        if error.response.status_code != _RANGE_NOT_SATISFIABLE:
            raise
        partial.unlink()
        hub.get(job, partial)


def _accept(partial: Path, place: Path, size: int | None, sha256: str | None) -> None:
    try:
        check(partial, size, sha256, str(place))
    except WeightsError:
        partial.unlink()
        raise
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    partial.replace(place)


def _is_whole(place: Path, size: int | None, sha256: str | None) -> bool:
    try:
        check(place, size, sha256)
    except WeightsError:
        place.unlink()
        return False
    return True


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _expected(job: Job, known: dict[str, dict[str, int | str]]) -> tuple[int | None, str | None]:
    entry = known.get(_key(job), {})
    size, sha256 = job[1].size or entry.get("size"), job[1].sha256 or entry.get("sha256")
    return (int(size) if size else None, str(sha256) if sha256 else None)


def _key(job: Job) -> str:
    source, file = job
    return f"{source.repository}@{source.revision}/{file.path}"


def _partial(place: Path) -> Path:
    return place.with_name(place.name + ".partial")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
