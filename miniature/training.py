"""What all trainings share: the loop, checkpoints, averaged weights, loss curves and sample sheets."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from miniature.muon import Muon, muon_parameters

CHECKPOINT_EVERY, SHEET_EVERY = 250, 1000
Module = TypeVar("Module", bound=nn.Module)


def init_distributed() -> None:
    """Join the processes that `torchrun` started. They share each batch, and only the main process writes files."""
    if "RANK" in os.environ:
        distributed.init_process_group("gloo")


def is_main_process() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0


@contextmanager
def main_process_first() -> Iterator[None]:
    """The main process runs the block before the others do."""
    if not is_main_process():
        distributed.barrier()
    yield
    if is_main_process() and distributed.is_initialized():
        distributed.barrier()


def own_rows() -> slice:
    """The rows of a batch that this process learns from. Every process draws the same whole batch."""
    if not distributed.is_initialized():
        return slice(None)
    return slice(distributed.get_rank(), None, distributed.get_world_size())


class Trainer:
    """Trains modules with a warm-up and a cosine decay of the learning rate, and averages their weights exponentially.

    `loss` gives the loss of step i. It draws all randomness from torch's CPU generator or from i: a training that is
    resumed from its checkpoint with the same `steps` equals one that was never interrupted.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        modules: Mapping[str, nn.Module],
        loss: Callable[[int], Tensor],
        *,
        optimizers: Sequence[torch.optim.Optimizer],
        steps: int,
        decay: float = 0.995,
        clip: float = 1.0,
    ) -> None:
        self.path = folder / f"{name}.pt"
        self.name, self.modules, self.loss = name, modules, loss
        self.steps, self.step, self.decay, self.clip = steps, 0, decay, clip
        self.parameters = {
            f"{part}.{key}": value
            for part, module in modules.items()
            for key, value in module.named_parameters()
            if value.requires_grad
        }
        self.averaged_tensors = self.parameters | {
            f"{part}.{key}": value
            for part, module in modules.items()
            for key, value in module.named_buffers()
            if "running" in key
        }
        self.average = {key: value.detach().clone() for key, value in self.averaged_tensors.items()}
        self.optimizers = optimizers
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(each, self._rate) for each in self.optimizers]
        self.curve: list[tuple[int, float]] = []
        if self.path.exists():
            self._load()

    def run(self, sheet: Callable[[], npt.NDArray[np.uint8]] | None = None) -> None:
        """Train to the last step. Save checkpoint and curve every CHECKPOINT_EVERY steps, a sheet every SHEET_EVERY."""
        total, count = 0.0, 0
        silent = not is_main_process()
        with tqdm(total=self.steps, initial=self.step, desc=self.name, mininterval=10, disable=silent) as progress:
            while self.step < self.steps:
                total, count = total + self._learn(), count + 1
                progress.update()
                if self.step % CHECKPOINT_EVERY == 0 or self.step == self.steps:
                    self.curve.append((self.step, total / count))
                    progress.set_postfix(loss=f"{total / count:.4f}")
                    total, count = 0.0, 0
                    if silent:
                        continue
                    self._save()
                    if sheet and (self.step % SHEET_EVERY == 0 or self.step == self.steps):
                        with self.averaged():
                            Image.fromarray(sheet()).save(self.path.with_suffix(".png"))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which the modules have their averaged weights."""
        self._swap()
        yield
        self._swap()

    def _swap(self) -> None:
        for key, value in self.averaged_tensors.items():
            before = value.detach().clone()
            value.data.copy_(self.average[key])
            self.average[key] = before

    def _rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / 200)
        return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(step / self.steps, 1.0))))

    def _learn(self) -> float:
        for value in self.parameters.values():
            value.grad = None
        with self._attention_backend():
            loss = self.loss(self.step)
            loss.backward()
        loss_value = self._average_gradients(float(loss.detach()))
        nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)
        for part in (*self.optimizers, *self.schedules):
            part.step()
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for key, value in self.averaged_tensors.items():
            self.average[key].lerp_(value.detach(), 1 - decay)
        return loss_value

    def _attention_backend(self) -> AbstractContextManager[None]:
        """Plain attention on a CPU: the fused kernel is made for long sequences and takes three times as long here."""
        on_cpu = next(iter(self.parameters.values())).device.type == "cpu"
        return sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext()

    def _average_gradients(self, loss: float) -> float:
        """Average the gradients over all processes; returns the averaged loss."""
        if not distributed.is_initialized():
            return loss
        gradients = [value.grad for value in self.parameters.values() if value.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients] + [gradients[0].new_tensor([loss])])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        for gradient, whole in zip(gradients, flat.split([*map(Tensor.numel, gradients), 1]), strict=False):
            gradient.copy_(whole.view_as(gradient))
        return float(flat[-1])

    def _save(self) -> None:
        state = {
            "step": self.step,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "average": self.average,
            "optimizers": [part.state_dict() for part in self.optimizers],
            "schedules": [part.state_dict() for part in self.schedules],
            "random": torch.get_rng_state(),
            "curve": self.curve,
        }
        torch.save(state, self.path.with_suffix(".part"))
        self.path.with_suffix(".part").replace(self.path)
        self.path.with_suffix(".json").write_text(json.dumps(self.curve))

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for key, value in state["average"].items():
            self.average[key].copy_(value)
        self.step, self.curve = state["step"], state["curve"]
        for part, kept in zip(self.optimizers, state["optimizers"], strict=True):
            part.load_state_dict(kept)
        for schedule, kept in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(kept)
        torch.set_rng_state(state["random"])


def make_optimizers(modules: Mapping[str, nn.Module], rate: float, **faster: float) -> list[torch.optim.Optimizer]:
    """Muon for the weights that suit it, AdamW for all others. `faster` multiplies the rate of the named modules."""
    matrices: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for part, module in modules.items():
        taken, own_rate = muon_parameters(module), rate * faster.get(part, 1.0)
        trained = [value for value in module.parameters() if value.requires_grad]
        matrices.append({"params": [value for value in trained if value in taken], "lr": own_rate})
        others.append({"params": [value for value in trained if value not in taken], "lr": own_rate})
    return [Muon(matrices, 1e-3), torch.optim.AdamW(others, weight_decay=1e-3)]


def load_averaged(path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Load the averaged weights of a checkpoint, finished or not, into modules of the same names."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
        own = {key.removeprefix(f"{name}."): value for key, value in state["average"].items() if key.startswith(name)}
        module.load_state_dict(own, strict=False)


def write_float16(tensors: Mapping[str, Tensor], path: Path, **notes: float) -> None:
    """Write all floating-point tensors as float16 safetensors, with `notes` in the file's header."""
    halves = {name: value.half().contiguous() for name, value in tensors.items() if value.is_floating_point()}
    save_file(halves, path, metadata={name: str(value) for name, value in notes.items()})


def load_float16(module: Module, path: Path) -> Module:
    """Load a file of `write_float16` into the module; raises ValueError if the file lacks weights."""
    state = {name: value.float() for name, value in load_file(path).items()}
    missing = [name for name in module.load_state_dict(state, strict=False).missing_keys if "num_batches" not in name]
    if missing:
        raise ValueError(f"{path.name} lacks {missing[:3]}")
    return module


def grid(rows: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Join rows of pictures `[n, h, w, 3]` into one picture."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def to_pictures(pixels: Tensor) -> npt.NDArray[np.uint8]:
    """Convert `[n, 3, h, w]` in [-1, 1] to `[n, h, w, 3]` uint8."""
    return ((pixels.detach().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
