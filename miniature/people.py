"""The identities of drawn people.

Lengths are in head units: half the width of the face is 1, the origin is the middle of the head, X points
to the image's right, Y down, Z to the viewer. Colours are RGB floats in [0, 1].
"""

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]

HAIR_STYLES = ("bald", "cropped", "short", "side-parted", "fringe", "bob", "long", "curly")
BEARDS = ("none", "stubble", "moustache", "beard")
GLASSES = ("none", "thin", "thick")
WRINKLED = 0.45
"""Age from which wrinkles show."""

SKINS: dict[str, Colour] = {
    "pale": (0.96, 0.82, 0.74),
    "fair": (0.91, 0.74, 0.63),
    "tan": (0.80, 0.60, 0.46),
    "brown": (0.60, 0.41, 0.30),
    "dark": (0.38, 0.25, 0.19),
}
HAIR_COLOURS: dict[str, Colour] = {
    "black": (0.07, 0.06, 0.06),
    "dark brown": (0.22, 0.14, 0.10),
    "brown": (0.38, 0.25, 0.16),
    "red": (0.58, 0.26, 0.12),
    "blond": (0.78, 0.62, 0.38),
    "grey": (0.60, 0.60, 0.60),
    "white": (0.88, 0.87, 0.85),
}
EYE_COLOURS: dict[str, Colour] = {
    "brown": (0.28, 0.16, 0.09),
    "hazel": (0.45, 0.33, 0.16),
    "green": (0.30, 0.45, 0.28),
    "blue": (0.28, 0.45, 0.65),
    "grey": (0.45, 0.50, 0.54),
}


@dataclass(frozen=True)
class Hair:
    """`line` is the Y of the hairline above the nose, `volume` the hair's radius relative to the skull's."""

    colour_name: str
    colour: Colour
    style: str
    line: float
    volume: float
    parting: float


@dataclass(frozen=True)
class Features:
    """Face proportions in head units, all of them constant for one person."""

    face_length: float
    jaw: float
    eye_spacing: float
    eye_height: float
    eye_width: float
    eye_roundness: float
    eye_tilt: float
    brow_gap: float
    brow_thickness: float
    brow_arch: float
    nose_length: float
    nose_width: float
    nose_height: float
    mouth_height: float
    mouth_width: float
    lip_fullness: float


@dataclass(frozen=True)
class Identity:
    """Everything about a person that is the same in all pictures."""

    skin_name: str
    skin: Colour
    eye_name: str
    eye_colour: Colour
    hair: Hair
    features: Features
    beard: str
    glasses: str
    age: float
    mark_seed: int


def random_identity(seed: int) -> Identity:
    """The person of this number. A number gives the same person on every machine."""
    rng = np.random.default_rng([seed, 0x1D])
    skin_name = str(rng.choice(list(SKINS)))
    eye_name = str(rng.choice(list(EYE_COLOURS)))
    hair = _random_hair(rng)
    bearded = hair.style in ("bald", "cropped", "short", "side-parted", "curly") and rng.random() < 0.5
    return Identity(
        skin_name=skin_name,
        skin=_vary(SKINS[skin_name], 0.05, rng),
        eye_name=eye_name,
        eye_colour=_vary(EYE_COLOURS[eye_name], 0.05, rng),
        hair=hair,
        features=_random_features(rng),
        beard=str(rng.choice(BEARDS[1:])) if bearded else "none",
        glasses=str(rng.choice(GLASSES, p=(0.76, 0.12, 0.12))),
        age=float(rng.beta(1.3, 2.0)),
        mark_seed=int(rng.integers(2**31)),
    )


def darker(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def _random_hair(rng: np.random.Generator) -> Hair:
    name = str(rng.choice(list(HAIR_COLOURS), p=(0.22, 0.2, 0.2, 0.1, 0.14, 0.08, 0.06)))
    style = str(rng.choice(HAIR_STYLES, p=(0.07, 0.1, 0.18, 0.14, 0.14, 0.12, 0.15, 0.1)))
    line = rng.uniform(-0.72, -0.48) if style == "fringe" else rng.uniform(-1.08, -0.78)
    low, high = {
        "bald": (1.0, 1.01),
        "cropped": (1.01, 1.05),
        "short": (1.05, 1.16),
        "curly": (1.15, 1.42),
    }.get(style, (1.08, 1.26))
    return Hair(
        colour_name=name,
        colour=_vary(HAIR_COLOURS[name], 0.04, rng),
        style=style,
        line=float(line),
        volume=float(rng.uniform(low, high)),
        parting=float(rng.uniform(-0.5, 0.5)),
    )


def _random_features(rng: np.random.Generator) -> Features:
    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    mouth_height = between(0.62, 0.76)
    return Features(
        face_length=between(1.28, 1.52),
        jaw=between(-0.06, 0.18),
        eye_spacing=between(0.40, 0.51),
        eye_height=between(-0.30, -0.18),
        eye_width=between(0.17, 0.235),
        eye_roundness=between(0.32, 0.55),
        eye_tilt=between(-0.16, 0.10),
        brow_gap=between(0.19, 0.28),
        brow_thickness=between(0.03, 0.085),
        brow_arch=between(0.0, 0.10),
        nose_length=mouth_height - between(0.28, 0.38),
        nose_width=between(0.15, 0.27),
        nose_height=between(0.18, 0.34),
        mouth_height=mouth_height,
        mouth_width=between(0.30, 0.44),
        lip_fullness=between(0.05, 0.12),
    )


def _vary(colour: Colour, spread: float, rng: np.random.Generator) -> Colour:
    red, green, blue = np.clip(np.array(colour) + rng.normal(0, spread, 3) * 0.5 + rng.normal(0, spread), 0.03, 1.0)
    return float(red), float(green), float(blue)
