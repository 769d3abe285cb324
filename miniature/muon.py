"""The optimizer Muon (Jordan et al., 2024; scaled as in arXiv 2502.16982): its momentum matrices are orthogonalised."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn

SMALLEST = 16


class Muon(torch.optim.Optimizer):
    """For weights of two and more dimensions. A convolution counts as a matrix: its outputs by everything else.

    torch's own `Muon` accepts matrices only and rounds to bfloat16, which is slow on a CPU without that type. Under
    `torchrun` each process computes a part of the updates. `lr` is on AdamW's scale.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(groups, {"weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        pairs = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not pairs:
            return
        shared = distributed.is_initialized()
        rank, world = (distributed.get_rank(), distributed.get_world_size()) if shared else (0, 1)
        updates = []
        for index, (parameter, group) in enumerate(pairs):
            step = self._nesterov_matrix(parameter, group["momentum"])
            updates.append(orthogonalise(step).flatten() if index % world == rank else step.new_zeros(step.numel()))
        flat = torch.cat(updates)
        if shared:
            distributed.all_reduce(flat)
        for (parameter, group), update in zip(pairs, flat.split([p.numel() for p, _ in pairs]), strict=True):
            rate = 0.2 * max(len(parameter), parameter[0].numel()) ** 0.5 * group["lr"]
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view_as(parameter), alpha=-rate)

    def _nesterov_matrix(self, parameter: Tensor, momentum: float) -> Tensor:
        """The step by Nesterov's momentum, as a matrix."""
        assert parameter.grad is not None
        mean = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        mean.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(mean, momentum).reshape(len(parameter), -1)


def orthogonalise(matrix: Tensor, rounds: int = 5) -> Tensor:
    """An approximation of the closest orthogonal matrix, by the quintic Newton-Schulz iteration."""
    wide = matrix / (torch.linalg.matrix_norm(matrix) + 1e-7)
    if tall := matrix.shape[0] > matrix.shape[1]:
        wide = wide.T
    for _ in range(rounds):
        square = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315), wide, beta=3.4445)
    return wide.T if tall else wide


def muon_parameters(module: nn.Module) -> set[Tensor]:
    """The weights of `module` that suit Muon: those of its linear and convolution layers except the first and last."""
    return {
        layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and layer.weight.requires_grad
        and min(len(layer.weight), layer.weight[0].numel()) >= SMALLEST
        and name not in ("conv_in", "conv_out")
    }
