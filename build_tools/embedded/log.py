"""Reading the server's log file."""

import re
from pathlib import Path

_FAILED = re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*?)\"?$", re.MULTILINE)
_LOADED = re.compile(r"successfully loaded '([^']+)'")
_ERROR = re.compile(r"^\S+ E \d+ \S+\] (.*)$|^(error: .*)$", re.MULTILINE)
_NOISE = "CudaDriverHelper"


def read(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def tail(path: Path, lines: int = 30) -> str:
    return "\n".join(read(path).splitlines()[-lines:])


def loaded_models(text: str) -> list[str]:
    """Names of the models that the server says it has loaded, in that order."""
    return _LOADED.findall(text)


def load_errors(text: str) -> dict[str, str]:
    """Reason, line breaks restored, of each model that failed to load."""
    return {match["model"]: match["reason"].replace("\\n", "\n").rstrip() for match in _FAILED.finditer(text)}


def errors(text: str) -> list[str]:
    """Messages that the server logged as errors, without the one every machine without a GPU shows."""
    found = (one or two for one, two in _ERROR.findall(text))
    return [message.strip('"').replace("\\n", "\n") for message in found if _NOISE not in message]
