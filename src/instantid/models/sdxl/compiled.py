"""Steps compiled ahead of time by AOTInductor: one package for each size and number of rows.

A package is code that runs on the denoiser's own weights and takes no memory for them; only vectors of up to eight
numbers are written into it. Before it serves it must be the file that was written, and agree with the eager networks.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn

from instantid.models.sdxl.memory import tensors
from instantid.models.sdxl.model import SdxlDenoiser
from instantid.models.sdxl.state import Rows, State

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference from the eager networks' noise, relative to the largest value of it."""
OPTIONS = {"aot_inductor.package_constants_in_so": False, "aot_inductor.use_runtime_constant_folding": False}
IDENTITY_SCALE = 0.8


class Given(NamedTuple):
    """What `SdxlDenoiser.predict` takes."""

    latents: Tensor
    timesteps: Tensor
    rows: Rows
    identity_scale: Tensor


class Step(nn.Module):
    """UNet and IdentityNet as one module that takes tensors only; `like` says how they belong together."""

    def __init__(self, denoiser: SdxlDenoiser, like: Rows) -> None:
        super().__init__()
        self.unet, self.identitynet = denoiser.networks.unet, denoiser.networks.identitynet
        self._predict, self._like = denoiser.predict, like

    def forward(self, latents: Tensor, timesteps: Tensor, identity_scale: Tensor, *rows: Tensor) -> Tensor:
        return self._predict(latents, timesteps, _joined(self._like, iter(rows)), identity_scale)


@torch.no_grad()
def compile_step(denoiser: SdxlDenoiser, states: Sequence[State], path: Path) -> None:
    """Write the package of a step of these states to `path`, and beside it a note of what was written.

    Takes minutes, and a C++ compiler. The note is written last: a package without one is not whole.
    """
    given = example(denoiser, states)
    program = torch.export.export(Step(denoiser, given.rows).eval(), _flat(given))
    partial = path.with_name(f"partial-{path.name}")
    torch._inductor.aoti_compile_and_package(program, package_path=str(partial), inductor_configs=OPTIONS)
    partial.replace(path)
    written = note_of(path).with_suffix(".partial")
    written.write_text(json.dumps({"sha256": _sha256(path)}))
    written.replace(note_of(path))


@torch.inference_mode()
def load_step(denoiser: SdxlDenoiser, states: Sequence[State], path: Path) -> Callable[..., Tensor]:
    """The compiled form of `denoiser.predict` for as many rows, and latents of the size, as these states have.

    Raises ValueError for a file that is not the one that was compiled, or whose results are not the networks'.
    """
    if json.loads(note_of(path).read_text()).get("sha256") != _sha256(path):
        raise ValueError(f"{path.name}: not the file that was compiled")
    index = denoiser.device.index if denoiser.device.type == "cuda" else -1
    package = torch._inductor.aoti_load_package(str(path), device_index=index)
    step = Step(denoiser, example(denoiser, states[:1]).rows)
    own = {**dict(step.named_parameters()), **dict(step.named_buffers())}
    names = package.get_constant_fqns()
    if missing := set(names) - own.keys():
        raise ValueError(f"{path.name}: made for other networks, with {min(missing)}")
    package.load_constants({name: own[name] for name in names}, check_full_update=True, user_managed=True)

    def predict(*given: Any) -> Tensor:
        result: Tensor = package(*_flat(Given(*given)))
        return result

    wrong = difference(denoiser, predict, example(denoiser, states))
    if not wrong <= TOLERANCE[denoiser.networks.dtype]:
        raise ValueError(f"{path.name}: differs by {wrong:.1e} from the networks")
    return predict


def difference(denoiser: SdxlDenoiser, predict: Callable[..., Tensor], given: Given) -> float:
    """Largest difference from the eager result, relative to its largest value; not a number where one is not finite."""
    expected, found = denoiser.predict(*given).float(), predict(*given).float()
    return float((found - expected).abs().max() / expected.abs().max())


def example(denoiser: SdxlDenoiser, states: Sequence[State]) -> Given:
    """Inputs of a step of these states, with latents and identity scales that are not all alike."""
    rows = Rows.cat([state.inputs for state in states])
    latents = torch.cat([state.latents.repeat(state.rows // len(state.latents), 1, 1, 1) for state in states])
    count = len(latents)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents)
    timesteps = torch.linspace(999, 1, count, device=latents.device)
    scale = torch.linspace(IDENTITY_SCALE, 1, count, device=latents.device, dtype=denoiser.networks.dtype)
    return Given(noise, timesteps, rows, scale[:, None, None, None])


def note_of(path: Path) -> Path:
    return path.with_suffix(".json")


def fingerprint(denoiser: SdxlDenoiser) -> str:
    """Changes with whatever changes compiled steps: device, versions, our code, weights."""
    device = denoiser.device
    digest = hashlib.sha256()
    for fact in (_device_name(device), torch.__version__, str(torch.version.cuda), diffusers.__version__):
        digest.update(fact.encode() + b"\n")
    for name in ("attention.py", "compiled.py", "denoiser.py", "state.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    for network in (denoiser.networks.unet, denoiser.networks.identitynet):
        digest.update(str(sorted(network.config.items())).encode())
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {_checksum(tensor)}\n".encode())
    return digest.hexdigest()[:16]


def _device_name(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"
    return f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"


def _checksum(tensor: Tensor) -> int:
    """A sum of the bits, weighted by place: the same on every device, and quick where the tensor is."""
    bits = tensor.detach().contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()]).flatten()
    places = torch.arange(1, len(bits) + 1, device=bits.device) % 65521
    return int((bits.long() * places).sum())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flat(given: Given) -> tuple[Tensor, ...]:
    """A package knows one dtype and one layout of each input."""
    rows = (tensor.contiguous() for tensor in tensors(given.rows))
    return (given.latents.contiguous(), given.timesteps.float(), given.identity_scale, *rows)


def _joined(like: Any, tensors: Iterator[Tensor]) -> Any:
    """The next tensors, put together as those of `like` are."""
    if isinstance(like, Tensor):
        return next(tensors)
    if isinstance(like, tuple):
        return tuple(_joined(part, tensors) for part in like)
    return type(like)(**{field.name: _joined(getattr(like, field.name), tensors) for field in fields(like)})
