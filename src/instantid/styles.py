"""Style templates: those of `styles.toml`, and the server's own."""

import tomllib
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from instantid import contract

PLACE = "{prompt}"


class Style(NamedTuple):
    """`prompt` has `{prompt}` where the caller's goes; the caller's negative prompt follows `negative_prompt`."""

    name: str
    prompt: str
    negative_prompt: str = ""

    def apply(self, prompt: str, negative_prompt: str) -> tuple[str, str]:
        """Both prompts of a request in this style."""
        negative = ", ".join(filter(None, (self.negative_prompt, negative_prompt)))
        return self.prompt.replace(PLACE, prompt), negative


BUILT_IN = Path(__file__).with_suffix(".toml")
_STYLE = TypeAdapter(Style)


def load_styles(path: Path | None = None) -> tuple[Style, ...]:
    """The built-in styles and those of a TOML file, whose tables are styles by name; one of the same name is replaced.

    Raises FileNotFoundError, or ValueError that names the file and what is wrong with it.
    """
    styles: dict[str, Style] = {}
    for file in [BUILT_IN, *([path] if path else [])]:
        try:
            tables = tomllib.loads(file.read_text())
            styles |= {name: _STYLE.validate_python({**table, "name": name}) for name, table in tables.items()}
        except (tomllib.TOMLDecodeError, ValidationError, TypeError) as error:
            raise ValueError(f"{file}: must have one table for each style: {error}") from None
    for style in styles.values():
        if style.prompt.count(PLACE) != 1 or style.name == contract.NO_STYLE or len(style.name) > contract.STYLE.high:
            raise ValueError(f"{path}: [{style.name}] must have a prompt with one {PLACE}, and a name of its own")
    return tuple(styles.values())
