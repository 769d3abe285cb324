"""The change that a LoRA file makes to one weight, in each form that trainers write.

LoRA (arXiv 2106.09685) and its rank-stabilised form (arXiv 2312.03732), LyCORIS' LoHa, LoKr and Tucker forms (arXiv
2309.14859), DoRA (arXiv 2402.09353), and whole differences.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Change(NamedTuple):
    """`parts`: one layer's tensors by the names of LyCORIS, `up`, `down` and `mid` for LoRA's."""

    parts: Mapping[str, Tensor]
    alpha: float | None = None
    stabilised: bool = False
    weight: float = 1.0

    def of(self, pristine: Tensor) -> Tensor:
        """Float32, with the shape and on the device of `pristine`; on the meta device only shapes are checked.

        Raises KeyError, ValueError or RuntimeError if the parts are not whole or do not fit.
        """
        parts = {name: part.to(pristine.device, torch.float32) for name, part in self.parts.items()}
        magnitude, by_input = parts.pop("lora_magnitude_vector", None), False
        if "dora_scale" in parts:
            magnitude = parts.pop("dora_scale")
            by_input = magnitude.ndim > 1 and len(magnitude) == 1
        change, rank = _product(parts)
        if parts or (len(change), change.numel()) != (len(pristine), pristine.numel()):
            raise ValueError("another form or shape")
        if self.alpha is not None and rank:
            change = change * (self.alpha / (rank**0.5 if self.stabilised else rank))
        change = change.reshape(pristine.shape)
        if magnitude is not None:
            change = _normalised(pristine.float() + change, magnitude, int(by_input)) - pristine.float()
        return self.weight * change


def _product(parts: dict[str, Tensor]) -> tuple[Tensor, int | None]:
    """Takes its factors out of `parts`; the rank is None where alpha does not count."""
    if "diff" in parts:
        return parts.pop("diff"), None
    if "hada_w1_a" in parts:
        first, rank = _factor(parts, "hada_w1", "hada_t1")
        return first * _factor(parts, "hada_w2", "hada_t2")[0], rank
    if any(name.startswith("lokr_") for name in parts):
        (first, rank), (second, second_rank) = _factor(parts, "lokr_w1", ""), _factor(parts, "lokr_w2", "lokr_t2")
        return torch.kron(first.reshape(*first.shape, *(1,) * (second.ndim - 2)), second), second_rank or rank
    up, down = parts.pop("up").flatten(1), parts.pop("down").flatten(1)
    if "mid" in parts:
        return _tucker(parts.pop("mid"), up.T, down), len(down)
    return up @ down, len(down)


def _factor(parts: dict[str, Tensor], name: str, core: str) -> tuple[Tensor, int | None]:
    """One factor of LoHa or LoKr, whole or itself a product, and the rank of that."""
    if name in parts:
        return parts.pop(name), None
    a, b = parts.pop(f"{name}_a"), parts.pop(f"{name}_b")
    return (_tucker(parts.pop(core), a, b) if core in parts else a @ b), len(b)


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`core` [i, j, ...], `a` [i, out], `b` [j, in] to [out, in, ...]."""
    return torch.einsum("ij...,io,jn->on...", core, a, b).contiguous()


def _normalised(merged: Tensor, magnitude: Tensor, axis: int) -> Tensor:
    """DoRA: the norms along `axis` (0: of each output) are those that were trained."""
    others = [i for i in range(merged.ndim) if i != axis]
    norms = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
    return merged * (magnitude.reshape(norms.shape) / norms)
