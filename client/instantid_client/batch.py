"""Many requests from one file of JSON lines."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import track

from instantid_client.client import InstantIDClient
from instantid_client.errors import InstantIDError, InvalidArgument
from instantid_client.results import numbered


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One line: `photo` (a path or a list of paths) and `pose_photo` lie beside the file, as does `output`."""

    line: int
    photo: tuple[Path, ...]
    prompt: str
    output: Path
    options: dict[str, Any]

    @property
    def is_done(self) -> bool:
        images = self.options.get("num_images_per_prompt", 1)
        paths = [self.output] if images == 1 else [numbered(self.output, i) for i in range(images)]
        return all(path.exists() for path in paths)


def read_requests(path: Path) -> list[BatchRequest]:
    """All requests of the file. Raises InvalidArgument, naming line and field, before anything is sent."""
    return [_parse(path.parent, i, line) for i, line in enumerate(path.read_text().splitlines(), 1) if line.strip()]


def run_batch(client: InstantIDClient, path: Path, concurrency: int, console: Console) -> int:
    """Send every request whose output does not exist; returns how many failed."""
    requests = read_requests(path)
    failed = 0
    with ThreadPoolExecutor(concurrency) as pool:
        answers = pool.map(lambda request: _run(client, request), requests)
        for answer in _tracked(answers, len(requests), console):
            failed += "error" in answer
            typer.echo(json.dumps(answer))
    return failed


def _tracked(answers: Iterator[dict[str, Any]], total: int, console: Console) -> Iterator[dict[str, Any]]:
    yield from track(answers, "batch", total, console=console)


def _run(client: InstantIDClient, request: BatchRequest) -> dict[str, Any]:
    answer: dict[str, Any] = {"line": request.line, "output": str(request.output)}
    if request.is_done:
        return {**answer, "skipped": True}
    try:
        result = client.generate(request.photo, request.prompt, **request.options)
        files = result.save(request.output)
    except (InstantIDError, OSError, TypeError) as error:
        return {**answer, "error": type(error).__name__, "message": str(error)}
    return {**answer, "files": [str(file) for file in files], "seeds": result.seeds, "seconds": result.seconds}


def _parse(folder: Path, line: int, text: str) -> BatchRequest:
    try:
        fields = json.loads(text)
        photo, prompt, output = (fields.pop(name) for name in ("photo", "prompt", "output"))
    except KeyError as error:
        raise InvalidArgument(f"line {line}: {error.args[0]} is missing") from error
    except (ValueError, AttributeError) as error:
        raise InvalidArgument(f"line {line}: not a JSON object: {error}") from error
    photos = tuple(folder / name for name in ([photo] if isinstance(photo, str) else photo))
    if "pose_photo" in fields:
        fields["pose_photo"] = folder / fields["pose_photo"]
    return BatchRequest(line, photos, prompt, folder / output, fields)
