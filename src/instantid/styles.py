"""Style templates, named by InstantID's own demo; the texts are this project's."""

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


NO_PHOTO = "photo, photorealistic, lowres, blurry, text, watermark, deformed"
NO_DRAWING = "drawing, cartoon, anime, lowres, blurry, text, watermark, deformed"
BUILT_IN = (
    Style("Watercolor", "watercolor portrait, {prompt}, wet on wet washes, soft pigment edges, paper grain", NO_PHOTO),
    Style(
        "Film Noir",
        "black and white film still, {prompt}, 1940s crime film, hard side light, deep shadows, smoke",
        f"colour, {NO_DRAWING}",
    ),
    Style(
        "Neon",
        "painting, {prompt}, city at night behind, neon tubes in lilac, orange and cyan, double exposure",
        NO_PHOTO,
    ),
    Style(
        "Jungle",
        "{prompt}, waist-up, in a dense jungle, broad wet leaves, mist, muted green and tangerine light, film still",
        NO_DRAWING,
    ),
    Style(
        "Mars",
        "{prompt}, in a settlement on Mars, red dust, rovers, worn space suits, low morning sun, sharp focus",
        NO_DRAWING,
    ),
    Style(
        "Vibrant Color", "flat vector illustration, {prompt}, ink outlines, saturated colours, clouds at dusk", NO_PHOTO
    ),
    Style(
        "Snow",
        "3d render, {prompt}, floating ice crystals, frozen landscape, cold wind, blue glow, high contrast",
        "lowres, blurry, text, watermark, deformed",
    ),
    Style("Line art", "line art of {prompt}, clean black lines on white, minimal, no shading", f"colour, {NO_PHOTO}"),
)
_STYLE = TypeAdapter(Style)


def load_styles(path: Path | None = None) -> tuple[Style, ...]:
    """The built-in styles and those of a TOML file, whose tables are styles by name; one of the same name is replaced.

    Raises FileNotFoundError, or ValueError that names the file and what is wrong with it.
    """
    styles = {style.name: style for style in BUILT_IN}
    if path:
        try:
            tables = tomllib.loads(path.read_text())
            styles |= {name: _STYLE.validate_python({**table, "name": name}) for name, table in tables.items()}
        except (tomllib.TOMLDecodeError, ValidationError, TypeError) as error:
            raise ValueError(f"{path}: must have one table for each style: {error}") from None
    for style in styles.values():
        if style.prompt.count(PLACE) != 1 or style.name == contract.NO_STYLE or len(style.name) > contract.STYLE.high:
            raise ValueError(f"{path}: [{style.name}] must have a prompt with one {PLACE}, and a name of its own")
    return tuple(styles.values())
