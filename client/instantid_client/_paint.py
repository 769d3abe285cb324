"""The lines of a batch, painted as the answers come."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

from instantid_client._lines import Line, WrongLine
from instantid_client.aio import AsyncInstantIDClient


@dataclass
class Tally:
    """What came of the lines so far; `str` is the summary."""

    lines: int
    painted: int = 0
    skipped: int = 0
    failed: int = 0
    wrong: int = 0
    interrupted: bool = False

    def __str__(self) -> str:
        left = self.lines - self.painted - self.skipped - self.failed - self.wrong
        counts = f"{self.painted} painted, {self.skipped} there already, {self.failed} failed, {self.wrong} wrong lines"
        return f"{'interrupted: ' if self.interrupted else ''}{counts}{f', {left} not painted' if left else ''}"

    @property
    def exit_code(self) -> int:
        if self.interrupted:
            return 130
        return 1 if self.failed else 2 if self.wrong else 0

    def wrong_line(self, line: WrongLine) -> None:
        self.wrong += 1
        _tell({"line": line.number}, line.error)


async def paint(lines: Sequence[Line], arguments: dict[str, Any], concurrency: int, tally: Tally) -> None:
    """Sends what is not done yet; each picture is saved as it comes, and one JSON line printed for each request."""
    todo = [line for line in lines if not line.is_done]
    for line in lines:
        if line.is_done:
            tally.skipped += 1
            typer.echo(json.dumps({"line": line.number, "output": str(line.output), "skipped": True}))
    async with AsyncInstantIDClient(**arguments) as client:
        async for item in client.batch((line.request for line in todo), concurrency=concurrency):
            line, error = todo[item.index], item.error
            told: dict[str, Any] = {"line": line.number, "output": str(line.output)}
            if item.result is not None:
                try:
                    saved = [str(path) for path in item.result.save(line.output)]
                    told |= {"files": saved, "seeds": item.result.seeds, "seconds": item.result.seconds}
                except (OSError, ValueError) as problem:
                    error = problem
            tally.failed += error is not None
            tally.painted += error is None
            _tell(told, error)


def _tell(fields: dict[str, Any], error: Exception | None) -> None:
    if error is not None:
        fields = {**fields, "error": type(error).__name__, "message": str(error)}
    typer.echo(json.dumps(fields))
