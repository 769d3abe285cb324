"""A fresh scheduler for each request: a contract name is the same sampler with every checkpoint.

A checkpoint says how it was trained; nothing else of its scheduler's configuration is read.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from instantid.contract import LCM_MAX_STEPS
from instantid.errors import InvalidArgument

TRAINING: Mapping[str, Any] = {
    "beta_start": None,
    "beta_end": None,
    "beta_schedule": None,
    "timestep_spacing": None,
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "steps_offset": 0,
}
"""What is read of a checkpoint's configuration. A default stands where diffusers' classes agree on one."""
CHOICES: Mapping[str, Sequence[str]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "prediction_type": ("epsilon", "v_prediction"),
}
SAMPLING: Mapping[str, Any] = {
    "clip_sample": False, "thresholding": False,
    "algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "predict_x0": True,
    "solver_p": None, "disable_corrector": (), "variance_type": None,
    "lower_order_final": True, "euler_at_final": False, "final_sigmas_type": "zero", "set_alpha_to_one": True,
    "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False, "use_lu_lambdas": False,
    "use_flow_sigmas": False, "use_dynamic_shifting": False, "shift_terminal": None,
    "sigma_min": None, "sigma_max": None, "lambda_min_clipped": -float("inf"),
    "interpolation_type": "linear", "timestep_type": "discrete",
    "original_inference_steps": LCM_MAX_STEPS, "timestep_scaling": 10.0,
}  # fmt: skip
"""All that would make a class another sampler; each is given what it knows of it."""


class UniPC(UniPCMultistepScheduler):
    """On a GPU, finds the weights of its updates, which are weighted sums, on the CPU: what unit vectors become.

    diffusers finds them on the latents' device and reads them back, which waits for the networks in each step.
    """

    def multistep_uni_p_bh_update(self, model_output: Tensor, *args: Any, **options: Any) -> Tensor:
        return self._weigh(super().multistep_uni_p_bh_update, model_output, **options)

    def multistep_uni_c_bh_update(self, this_model_output: Tensor, *args: Any, **options: Any) -> Tensor:
        return self._weigh(super().multistep_uni_c_bh_update, this_model_output, **options)

    def _weigh(self, update: Callable[..., Tensor], output: Tensor, order: int, **samples: Tensor) -> Tensor:
        if output.device.type == "cpu":
            return update(output, order=order, **samples)
        earlier = self.model_outputs
        terms = [output, *samples.values(), *earlier]
        units = torch.eye(len(terms))[:, None]
        self.model_outputs = list(units[-len(earlier) :])
        weights = update(units[0], order=order, **dict(zip(samples, units[1:], strict=False)))[0].tolist()
        self.model_outputs = earlier
        return sum(w * x for w, x in zip(weights, terms, strict=True) if w)


CLASSES: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "ddim": (diffusers.DDIMScheduler, {}),
    "unipc": (UniPC, {"solver_type": "bh2"}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
}
"""Contract name to class, and where it departs from SAMPLING."""


class Schedule:
    """One request's scheduler: its timesteps, and one step of its latents.

    Latents and arithmetic are float32. Noise comes from the request's CPU generators, one per picture, so that
    neither the batch nor the device changes it. `timesteps` are float32 scalars on `device`, for the networks; all
    else stays on the CPU, so that no step reads the device. Raises ValueError as `training` does.
    """

    def __init__(self, name: str, config: Mapping[str, Any], num_inference_steps: int, device: torch.device) -> None:
        self._scheduler = make_scheduler(name, training(config))
        self._scheduler.set_timesteps(num_inference_steps)
        self._cut(count_steps(name, num_inference_steps))
        self.timesteps: tuple[Tensor, ...] = tuple(self._scheduler.timesteps.to(device, torch.float32))
        self._takes_generator = "generator" in inspect.signature(self._scheduler.step).parameters

    def _cut(self, steps: int) -> None:
        """Spaced from the end, 61 timesteps of 1000 are 62 in diffusers, the last of them -1."""
        scheduler = self._scheduler
        scheduler.timesteps = scheduler.timesteps[:steps]
        if hasattr(scheduler, "sigmas"):
            scheduler.sigmas = torch.cat([scheduler.sigmas[:steps], scheduler.sigmas[-1:]])
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)

    def initial(self, noise: Tensor) -> Tensor:
        """Latents to start from, given unit noise."""
        return noise * self._scheduler.init_noise_sigma

    def scale(self, latents: Tensor, index: int) -> Tensor:
        """The network's input at step `index`; to be called once a step, before `step`."""
        return self._scheduler.scale_model_input(latents, self._scheduler.timesteps[index])

    def step(self, noise: Tensor, index: int, latents: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Latents after step `index`, given what the network predicted."""
        options = {"generator": list(generators)} if self._takes_generator else {}
        timestep = self._scheduler.timesteps[index]
        return self._scheduler.step(noise, timestep, latents, return_dict=False, **options)[0]


def make_scheduler(name: str, trained: Mapping[str, Any]) -> Any:
    """A scheduler of diffusers for what `training` gives. Heun's class knows no zero SNR, and takes Euler's noise."""
    kind, changes = CLASSES[name]
    known = inspect.signature(kind).parameters
    scheduler = kind(**{key: value for key, value in {**trained, **SAMPLING, **changes}.items() if key in known})
    if "rescale_betas_zero_snr" not in known:
        scheduler.alphas_cumprod = make_scheduler("euler", trained).alphas_cumprod
    return scheduler


def training(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler's configuration says of the checkpoint's training.

    Raises ValueError, naming the key, where it says too little or what no scheduler here can sample.
    """
    trained = {key: config.get(key, default) for key, default in TRAINING.items()}
    for key in ("beta_start", "beta_end"):
        if trained[key] is None:
            raise ValueError(f"scheduler configuration: {key} is missing")
    for key, choices in CHOICES.items():
        if trained[key] not in choices:
            raise ValueError(f"scheduler configuration: {key} is {trained[key]}; must be one of {', '.join(choices)}")
    if trained["rescale_betas_zero_snr"] and trained["prediction_type"] == "epsilon":
        raise ValueError("scheduler configuration: rescale_betas_zero_snr needs prediction_type v_prediction")
    return trained


def check_steps(name: str, config: Mapping[str, Any], num_inference_steps: int) -> None:
    """Raises InvalidArgument where a scheduler needs more steps than these to paint with this checkpoint."""
    fewest = fewest_steps(name, config)
    if num_inference_steps < fewest:
        spacing = f"timestep_spacing {config['timestep_spacing']}"
        checkpoint = f"{spacing} and zero SNR" if config.get("rescale_betas_zero_snr") else spacing
        raise InvalidArgument(
            "num_inference_steps",
            str(num_inference_steps),
            f"the scheduler {name} needs {fewest} with this checkpoint's {checkpoint}; dpmpp_2m takes fewer",
        )


def fewest_steps(name: str, config: Mapping[str, Any]) -> int:
    """Fewer begin at a timestep that has the picture in it already, or (Heun) end in a step that multiplies errors."""
    spacing = config["timestep_spacing"]
    if name == "heun" and config.get("rescale_betas_zero_snr") and spacing != "leading":
        return 10
    return 1 if spacing == "trailing" else {"euler": 2, "euler_ancestral": 2, "ddim": 2, "heun": 4}.get(name, 1)


def count_steps(scheduler: str, num_inference_steps: int) -> int:
    """Evaluations of the network: Heun (Karras et al. 2022, algorithm 1) takes two a step, one for the last."""
    return 2 * num_inference_steps - 1 if scheduler == "heun" else num_inference_steps


def control_window(steps: int, start: float, end: float) -> tuple[float, ...]:
    """For each step, 1 where IdentityNet acts and 0 outside its window (diffusers' `controlnet_keep`)."""
    return tuple(1.0 - float(i / steps < start or (i + 1) / steps > end) for i in range(steps))
