"""What one set of weights can do: `profile.json` in its folder, written by the tool that made the set."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instantid import contract
from instantid.contract import Choice, Number, Option
from instantid.styles import Style

FILE_NAME = "profile.json"
STORED = ("name", "native_area", "min_side", "max_side", "max_area", "licences")
"""The fields in the file; the others follow from the few-step mode."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a set of weights paints; sides in pixels (multiples of 64), areas in square pixels.

    The first of `schedulers` is the default. `timestep_spacing`, if set, is used in place of the checkpoint's own.
    `lora` is the file in the set's folder `lora` that a few-step mode fuses, or empty. `styles` and
    `prompt_syntaxes` are those that a request may name.
    """

    name: str
    native_area: int
    min_side: int
    max_side: int
    max_area: int
    licences: tuple[str, ...] = ()
    schedulers: tuple[str, ...] = contract.SCHEDULERS
    num_inference_steps: Number = contract.NUM_INFERENCE_STEPS
    guidance_scale: Number = contract.GUIDANCE_SCALE
    timestep_spacing: str | None = None
    lora: str = ""
    styles: tuple[Style, ...] = ()
    prompt_syntaxes: tuple[str, ...] = contract.PROMPT_SYNTAXES

    @property
    def options(self) -> tuple[Option, ...]:
        """The contract's options with the defaults and bounds of these weights, and the server's styles."""
        sides = [replace(side, low=self.min_side, high=self.max_side) for side in (contract.WIDTH, contract.HEIGHT)]
        scheduler = replace(contract.SCHEDULER, default=self.schedulers[0], choices=self.schedulers)
        names = (contract.NO_STYLE, *(style.name for style in self.styles))
        style = Choice(contract.STYLE.name, contract.NO_STYLE, names, contract.STYLE.help)
        syntax = replace(contract.PROMPT_SYNTAX, choices=self.prompt_syntaxes)
        narrowed: tuple[Option, ...] = (*sides, scheduler, syntax, style, self.num_inference_steps, self.guidance_scale)
        own = {option.name: option for option in narrowed}
        return tuple(own.get(option.name, option) for option in contract.OPTIONS)

    def save(self, folder: Path) -> None:
        stored = {name: getattr(self, name) for name in STORED}
        (folder / FILE_NAME).write_text(json.dumps(stored, indent=2) + "\n")


FEW_STEPS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "hyper": {
        "schedulers": ("ddim",),
        "num_inference_steps": replace(contract.NUM_INFERENCE_STEPS, default=8, low=4, high=16),
        "guidance_scale": replace(contract.GUIDANCE_SCALE, high=10.0),
        "timestep_spacing": "trailing",
        "lora": "hyper.safetensors",
    },
    "lcm": {
        "schedulers": ("lcm",),
        "num_inference_steps": replace(contract.NUM_INFERENCE_STEPS, default=8, low=2, high=12),
        "guidance_scale": replace(contract.GUIDANCE_SCALE, default=1.0, high=2.0),
        "lora": "lcm.safetensors",
    },
}
"""What a few-step mode changes in a profile: Hyper-SD's 8-step LoRA that keeps guidance (arXiv 2404.13686; DDIM with
trailing timesteps, guidance 5 to 8), and LCM-LoRA (arXiv 2311.05556; 2 to 8 steps, 10 in InstantID's own example,
guidance 1 to 2)."""


def load_profile(folder: Path, few_steps: str = "none", styles: tuple[Style, ...] = ()) -> Profile:
    """Read `folder/profile.json`, as the mode `few_steps` of FEW_STEPS changes it, with the server's `styles`.

    Raises FileNotFoundError, with what to run, if the folder holds no set of weights.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no weights in {folder}: run `python -m build_tools weights miniature`")
    fields = json.loads(path.read_text())
    licences = tuple(fields.get("licences", ()))
    return Profile(**{**fields, "licences": licences, "styles": styles, **FEW_STEPS[few_steps]})


SDXL = {"native_area": 1024 * 1024, "min_side": 512, "max_side": 1536, "max_area": 2 * 1024 * 1024}
"""Sizes of SDXL base 1.0 (arXiv 2307.01952: trained around one megapixel)."""
