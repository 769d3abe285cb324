"""What a scheduler paints: with the best network for pictures that are Gaussian, and with the miniature's networks.

Where pictures are Gaussian the truth is known: what the best network predicts, and where noise leads, are closed forms.
"""

from dataclasses import dataclass

import numpy as np
import torch

from instantid.faces.landmark_picture import draw_landmarks
from instantid.models.sdxl.schedules import Schedule
from miniature.album import draw_page
from miniature.people import random_identity
from miniature.sdxl import SCHEDULER

from .diffusing import make_request
from .reference import NO_GENERATOR, right_scheduler, scaled_linear_betas, zero_snr_betas

CPU = torch.device("cpu")
SHAPE = (1, 4, 16, 16)
STOCHASTIC = ("euler_ancestral", "lcm")
SPACINGS = ("leading", "linspace", "trailing")
KINDS = {
    f"{prediction}{', zero SNR' * zero_snr}, {spacing} + {offset}": {
        **SCHEDULER,
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "steps_offset": offset,
        "rescale_betas_zero_snr": zero_snr,
    }
    for prediction, zero_snr in (("epsilon", False), ("v_prediction", False), ("v_prediction", True))
    for spacing, offset in (("leading", 0), ("leading", 1), ("trailing", 1), ("linspace", 0))
}


@dataclass
class Gaussian:
    """Pictures with the spread `spread` around `mean` in every value, in the noise of a checkpoint."""

    config: dict
    spread: float = 0.5

    def __post_init__(self):
        zero_snr = self.config["rescale_betas_zero_snr"]
        kept = np.cumprod(1 - np.array(zero_snr_betas(self.config) if zero_snr else scaled_linear_betas(self.config)))
        self.sigmas = torch.from_numpy(np.sqrt((1 - kept) / kept))
        self.mean = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).sign().double()

    def predict(self, latents, timestep, distilled=False):
        """What the best network predicts; distilled (arXiv 2310.04378): the end of the path, not the mean of all."""
        below, part = int(timestep), float(timestep) % 1
        sigma = torch.lerp(self.sigmas[below], self.sigmas[min(below + 1, len(self.sigmas) - 1)], part)
        kept, noised = 1 / (sigma**2 + 1) ** 0.5, sigma / (sigma**2 + 1) ** 0.5
        variance = (kept * self.spread) ** 2 + noised**2
        off = latents.double() - kept * self.mean
        found = self.mean + off * self.spread / (variance**0.5 if distilled else variance / (self.spread * kept))
        noise = (latents.double() - kept * found) / noised
        return (noise if self.config["prediction_type"] == "epsilon" else kept * noise - noised * found).float()

    def error(self, name, latents, noise):
        """Distance from where the first noise leads; from the mean, where a sampler adds noise of its own."""
        truth = self.mean if name in STOCHASTIC else self.mean + self.spread * noise
        return float((latents - truth).square().mean().sqrt())


def first_noise(shape=SHAPE, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), generator


def paint(name, config, steps, predict, shape=SHAPE):
    """Ours: final latents."""
    schedule, (noise, generator) = Schedule(name, config, steps, CPU), first_noise(shape)
    latents = schedule.initial(noise)
    for i, timestep in enumerate(schedule.timesteps):
        latents = schedule.step(predict(schedule.scale(latents, i), timestep), i, latents, [generator])
    return latents


def paint_with_diffusers(name, config, steps, predict, shape=SHAPE, begin=0, start=None):
    """The same by diffusers; from step `begin` on where there are latents to start from, which are then noised."""
    scheduler, (noise, generator) = right_scheduler(name, config), first_noise(shape, 5 + begin)
    scheduler.set_timesteps(steps)
    if name != "ddim":
        scheduler.set_begin_index(begin)
    options = {} if name in NO_GENERATOR else {"generator": generator}
    latents = noise * scheduler.init_noise_sigma if start is None else start + noise * scheduler.sigmas[begin]
    for timestep in scheduler.timesteps[begin:]:
        predicted = predict(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(predicted, timestep, latents, return_dict=False, **options)[0]
    return latents


def paint_gaussian(name, config, steps, spread=0.5):
    """Final latents by us, by diffusers, and our error."""
    world = Gaussian(config, spread)

    def predict(latents, timestep):
        return world.predict(latents, timestep, distilled=name == "lcm")

    ours = paint(name, config, steps, predict)
    return ours, paint_with_diffusers(name, config, steps, predict), world.error(name, ours, first_noise()[0])


class Portrait:
    """A stranger by the miniature's networks, and the picture that all samplers without noise of their own lead to.

    It is diffusers', of so many steps of the scheduler `name`.
    """

    shape = (1, 8, 16, 16)

    def __init__(self, reference, name, steps):
        side = 8 * self.shape[-1]
        page = draw_page(random_identity(90000), 0, side, style="photo")
        request = make_request(prompt="a photo of a person, blue suit, garden", width=side, height=side)
        embedding = np.random.default_rng(0).normal(size=512).astype(np.float32)
        self.reference, self.config = reference, reference.config
        self.predict = reference.network(request, embedding, draw_landmarks(page.landmarks, side, side))
        self.latents = paint_with_diffusers(name, self.config, steps, self.predict, self.shape)
        self.home = self.returns(self.latents)

    def psnr(self, latents, other):
        """Of two latents' pictures, in dB."""
        one, two = (self.reference.picture(x).astype(float) for x in (latents, other))
        return 10 * np.log10(255**2 / np.square(one - two).mean())

    def returns(self, latents):
        """PSNR in dB of a picture and of the one that is painted from it after noise of sigma 1.6 was added.

        It is low where the networks would not have painted that picture, whatever noise they started from.
        """
        again = paint_with_diffusers("euler", self.config, 50, self.predict, self.shape, begin=30, start=latents)
        return self.psnr(again, latents)
