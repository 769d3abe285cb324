"""A fresh scheduler for each request, always from the checkpoint's own configuration.

Copying the configuration of a scheduler that was changed before would carry its flags into later requests.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor

CLASSES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": False}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "ddim": ("DDIMScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
"""Contract name to diffusers class and what it changes in the checkpoint's configuration."""


class Schedule:
    """One request's scheduler: its timesteps, and one step of its latents.

    Latents and arithmetic are float32. Noise comes from the request's CPU generators, one per picture, so that
    neither the batch nor the device changes it.
    """

    _scheduler: Any

    def __init__(self, name: str, config: Mapping[str, Any], num_inference_steps: int, device: torch.device) -> None:
        class_name, changes = CLASSES[name]
        self._scheduler = getattr(diffusers, class_name).from_config(dict(config), **changes)
        self._scheduler.set_timesteps(num_inference_steps, device=device)
        self.timesteps: tuple[Tensor, ...] = tuple(self._scheduler.timesteps)
        self._takes_generator = "generator" in inspect.signature(self._scheduler.step).parameters

    def initial(self, noise: Tensor) -> Tensor:
        """Latents to start from, given unit noise."""
        latents: Tensor = noise * self._scheduler.init_noise_sigma
        return latents

    def scale(self, latents: Tensor, index: int) -> Tensor:
        """The network's input at step `index`; to be called once a step, before `step`."""
        scaled: Tensor = self._scheduler.scale_model_input(latents, self.timesteps[index])
        return scaled

    def step(self, noise: Tensor, index: int, latents: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Latents after step `index`, given the predicted noise."""
        options = {"generator": list(generators)} if self._takes_generator else {}
        stepped: Tensor = self._scheduler.step(noise, self.timesteps[index], latents, return_dict=False, **options)[0]
        return stepped


def count_steps(scheduler: str, num_inference_steps: int) -> int:
    """Evaluations of the network: Heun (Karras et al. 2022, algorithm 1) takes two a step, one for the last."""
    return 2 * num_inference_steps - 1 if scheduler == "heun" else num_inference_steps


def control_window(steps: int, start: float, end: float) -> tuple[float, ...]:
    """For each step, 1 where IdentityNet acts and 0 outside its window (diffusers' `controlnet_keep`)."""
    return tuple(1.0 - float(i / steps < start or (i + 1) / steps > end) for i in range(steps))
