"""What one set of weights can do: `profile.json` in its folder, written by the tool that made the set."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

FILE_NAME = "profile.json"


@dataclass(frozen=True, slots=True)
class Profile:
    """Sizes that a set of weights paints; sides in pixels (multiples of 64), areas in square pixels."""

    name: str
    native_area: int
    min_side: int
    max_side: int
    max_area: int
    licences: tuple[str, ...] = ()
    lora: str = ""
    timestep_spacing: str | None = None

    def save(self, folder: Path) -> None:
        (folder / FILE_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n")


def load_profile(folder: Path) -> Profile:
    """Read `folder/profile.json`.

    Raises FileNotFoundError, with what to run, if the folder holds no set of weights.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no weights in {folder}: run `python -m build_tools weights miniature`")
    fields = json.loads(path.read_text())
    return Profile(**{**fields, "licences": tuple(fields.get("licences", ()))})


SDXL = {"native_area": 1024 * 1024, "min_side": 512, "max_side": 1536, "max_area": 2 * 1024 * 1024}
"""Sizes of SDXL base 1.0 (arXiv 2307.01952: trained around one megapixel)."""
