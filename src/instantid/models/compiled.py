"""Steps compiled ahead of time by AOTInductor: one package for each size and number of rows.

`python -m build_tools compile` writes them; a server only loads them. A package is code that runs on the model's own
weights; only vectors of up to eight numbers are written into it. It serves if it is the file that was written and
agrees with the networks as they run without it.
"""

import contextlib
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from instantid.errors import Overloaded
from instantid.models.memory import release
from instantid.models.predict import Call

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference from the eager networks' noise, relative to the largest value of it."""
IDENTITY_SCALE = 0.8
Shape = tuple[tuple[int, int], int]
"""((height, width) in pixels, rows)."""


class WrongPackage(ValueError):
    """A package that must not serve: another file than was written, made for other networks, or other results."""


class Step(nn.Module):
    """UNet and IdentityNet as one module that takes tensors only; `like` says how they belong together."""

    def __init__(self, model: Any, like: Any) -> None:
        super().__init__()
        self.unet, self.identitynet = model.networks.unet, model.networks.identitynet
        self._predict, self._spec = model.denoise.predictor.eager, pytree.tree_structure(like)

    def forward(self, *leaves: Tensor) -> Tensor:
        return self._predict(pytree.tree_unflatten(leaves, self._spec))


def package_folder(cache: Path, model: Any) -> Path:
    """Where the packages of such a model lie: its fingerprint is in the name."""
    return cache / f"compiled-{model.fingerprint}"


def package_name(shape: Shape) -> str:
    """HEIGHTxWIDTH-ROWS."""
    (height, width), rows = shape
    return f"{height}x{width}-{rows}"


def load_compiled(model: Any, cache: Path, shapes: Sequence[Shape]) -> None:
    """Let the packages serve that are there and agree; one that is wrong is deleted."""
    for size, rows in shapes:
        path = package_folder(cache, model) / f"{package_name((size, rows))}.pt2"
        if not note_of(path).exists():
            log.warning("no compiled step %s; `python -m build_tools compile` makes it", path.stem)
            continue
        try:
            states = model.example(size, rows)
            with torch.inference_mode():
                call = load_step(model, states, path)
                model.denoise.predictor.prepared[example_inputs(model, states).key] = call
            log.info("compiled step %s serves", path.stem)
        except WrongPackage as error:
            log.warning("a compiled step is deleted: %s", error)
            for wrong in (note_of(path), path):
                with contextlib.suppress(OSError):
                    wrong.unlink(missing_ok=True)
        except (RuntimeError, OSError, Overloaded) as error:
            log.warning("the compiled step %s does not serve now: %s", path.stem, error)
            release(model.device)


def load_step(model: Any, states: Sequence[Any], path: Path) -> Call:
    """The compiled form of a step for as many rows, and latents of the size, as these states have.

    Raises WrongPackage, or RuntimeError where the device cannot hold or run it now.
    """
    if note_of(path).read_bytes() != file_sha256(path):
        raise WrongPackage(f"{path.name}: not the file that was compiled")
    index = model.device.index if model.device.type == "cuda" else -1
    package = torch._inductor.aoti_load_package(str(path), device_index=index)
    inputs = example_inputs(model, states)
    step = Step(model, inputs)
    own = {**dict(step.named_parameters()), **dict(step.named_buffers())}
    names = package.get_constant_fqns()
    if missing := set(names) - own.keys():
        raise WrongPackage(f"{path.name}: made for other networks, with {min(missing)}")
    package.load_constants({name: own[name] for name in names}, check_full_update=True, user_managed=True)

    def call(inputs: Any) -> Tensor:
        return package(*leaves(inputs))

    wrong = difference(model, call, inputs)
    if not wrong <= TOLERANCE[model.networks.dtype]:
        raise WrongPackage(f"{path.name}: differs by {wrong:.1e} from the networks")
    return call


def difference(model: Any, call: Call, inputs: Any) -> float:
    """Largest difference from the eager result, relative to its largest value; not a number where one is not finite."""
    expected, found = model.denoise.predictor.eager(inputs).float(), call(inputs).float()
    return float((found - expected).abs().max() / expected.abs().max())


def example_inputs(model: Any, states: Sequence[Any]) -> Any:
    """Inputs of a step of these states, with latents, timesteps and scales that are not all alike."""
    inputs = model.denoise.inputs(states)
    count, device = len(inputs.latents), inputs.latents.device
    noise = torch.randn(inputs.latents.shape, generator=torch.Generator().manual_seed(0)).to(inputs.latents)
    scale = torch.linspace(IDENTITY_SCALE, 1, count, device=device, dtype=model.networks.dtype)
    return inputs._replace(
        latents=noise,
        timesteps=torch.linspace(999, 1, count, device=device),
        scales=(scale[:, None, None, None],) * len(inputs.scales),
    )


def note_of(path: Path) -> Path:
    """The file beside a package that has its sha256; a package without one is not whole."""
    return path.with_suffix(".sha256")


def file_sha256(path: Path) -> bytes:
    """In hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().encode()


def leaves(inputs: Any) -> tuple[Tensor, ...]:
    """A package knows one layout of each input."""
    return tuple(leaf.contiguous() for leaf in pytree.tree_leaves(inputs))
