"""Trees (NamedTuples or tuples) of tensors whose first dimension counts rows: joined, repeated, selected by row."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Part = TypeVar("Part")


def join(parts: Sequence[Part]) -> Part:
    """The rows of all parts, one part after the other; a single part is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    return pytree.tree_map(lambda *tensors: torch.cat(tensors), *parts)


def repeat(part: Part, copies: int) -> Part:
    """Each row `copies` times, equal rows side by side."""
    if copies == 1:
        return part
    return pytree.tree_map(lambda tensor: tensor.repeat_interleave(copies, dim=0), part)


def select(part: Part, rows: Any) -> Part:
    """The rows that an index (slice, list or boolean tensor) names."""
    return pytree.tree_map(lambda tensor: tensor[rows], part)


def tensors(value: Any) -> list[Tensor]:
    """All tensors of a tree, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def kept_bytes(value: Any) -> int:
    """Bytes that the tensors of a tree keep; a storage that several of them share counts once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(value)}
    return sum(storages.values())
