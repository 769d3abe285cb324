"""Targets and loss of the miniature detector."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from miniature.detector import ANCHOR_SIZES, STRIDES, anchor_centres


@dataclass(frozen=True)
class Anchors:
    """All anchors of one input size: `centres` `[a, 2]` pixels, `sizes` `[a]` pixels, `strides` `[a]`."""

    centres: Tensor
    sizes: Tensor
    strides: Tensor

    @classmethod
    def of(cls, height: int, width: int) -> "Anchors":
        centres = anchor_centres(height, width)
        sizes = [torch.tensor(pair).repeat(len(c) // 2) for pair, c in zip(ANCHOR_SIZES, centres, strict=True)]
        strides = [torch.full((len(c),), float(stride)) for stride, c in zip(STRIDES, centres, strict=True)]
        return cls(torch.cat(centres), torch.cat(sizes), torch.cat(strides))


def assign(anchors: Anchors, faces: Tensor) -> tuple[Tensor, Tensor]:
    """The index `[a]` of each anchor's face in `faces` `[n, 15]` (-1: background, -2: ignored), and its cost `[a]`.

    An anchor is positive when its size is within a factor of 1.6 of the face's and its centre lies in the middle
    of the box; a shell around both conditions is ignored.
    """
    if len(faces) == 0:
        return torch.full_like(anchors.sizes, -1, dtype=torch.long), torch.zeros_like(anchors.sizes)
    boxes = faces[:, :4]
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    octaves = (anchors.sizes[:, None] / sides.prod(1).sqrt().clamp(9, 400)).log2().abs()
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    away = (anchors.centres[:, None] - middle).abs()
    reach = torch.maximum(sides * 0.2, anchors.strides[:, None, None] * 0.51)
    off = (away / reach).amax(-1)
    positive = (off < 1) & (octaves < 0.68)
    near = (off < 1.8) & (octaves < 1.1)
    cost = torch.where(positive, off + octaves, torch.inf)
    best, face = cost.min(1)
    target = torch.where(best.isfinite(), face, torch.where(near.any(1), -2, -1))
    return target, best


def detection_loss(outputs: tuple[Tensor, ...], faces: list[Tensor], anchors: Anchors) -> dict[str, Tensor]:
    """Focal loss of scores, 1 - GIoU of boxes, smooth L1 of landmarks, each averaged over the positive anchors.

    `outputs` are `Detector.forward`'s; `faces` hold for each picture `[n, 15]`: box, landmarks, landmark weight.
    """
    logits, boxes, points = (torch.cat(outputs[i : i + 3], 1) for i in (0, 3, 6))
    targets = torch.stack([assign(anchors, rows)[0] for rows in faces])
    positive = targets >= 0
    count = positive.sum().clamp(min=1)
    losses = {"score": _focal(logits[..., 0], targets) / count}
    picture, anchor = positive.nonzero(as_tuple=True)
    zero = boxes.sum() * 0
    if len(picture) == 0:
        return losses | {"box": zero, "landmark": zero}
    chosen = torch.stack([faces[int(p)][int(targets[p, a])] for p, a in zip(picture, anchor, strict=True)])
    centres, stride = anchors.centres[anchor], anchors.strides[anchor, None]
    truth = torch.cat([centres - chosen[:, :2], chosen[:, 2:4] - centres], 1) / stride
    losses["box"] = (1 - _giou(boxes[picture, anchor], truth)).sum() / count
    offsets = (chosen[:, 4:14].view(-1, 5, 2) - centres[:, None]).flatten(1) / stride
    scale = (anchors.sizes[anchor, None] / stride) / 4
    error = functional.smooth_l1_loss(points[picture, anchor] / scale, offsets / scale, reduction="none", beta=0.02)
    losses["landmark"] = (error.mean(1) * chosen[:, 14]).sum() / count
    return losses


def _focal(logits: Tensor, targets: Tensor) -> Tensor:
    truth = (targets >= 0).float()
    chance = torch.sigmoid(logits)
    miss = (chance - truth).abs()
    cross = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    weight = torch.where(truth > 0, 0.5, 0.5) * miss**2
    return (weight * cross * (targets != -2)).sum()


def _giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al., 2019) of boxes given as distances from one point."""
    area = (first[:, 0] + first[:, 2]) * (first[:, 1] + first[:, 3])
    truth = (second[:, 0] + second[:, 2]) * (second[:, 1] + second[:, 3])
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    inter = (low[:, 0] + low[:, 2]).clamp(min=0) * (low[:, 1] + low[:, 3]).clamp(min=0)
    union = area + truth - inter
    hull = (high[:, 0] + high[:, 2]) * (high[:, 1] + high[:, 3])
    return inter / (union + 1e-6) - (hull - union) / (hull + 1e-6)
