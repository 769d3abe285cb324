"""Small networks in the form of insightface's: one that finds bright discs, one that embeds its crops."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

KINDS = (1, 4, 10)
SHAPE = torch.tensor([-0.35, -0.2, 0.35, -0.2, 0.0, 0.15, -0.25, 0.5, 0.25, 0.5])


class DiscDetector(nn.Module):
    """Finds bright discs with a radius of about 10 pixels by centre minus surround; sizes and landmarks are random."""

    def __init__(self, batched: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.batched = batched
        self.filters = nn.ModuleList(nn.Conv2d(3, 30, 9, stride=s, padding=4) for s in (8, 16, 32))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        grey = images.mean(dim=1, keepdim=True)
        contrast = mean(grey, 15) - mean(grey, 45)
        rows: dict[int, list[torch.Tensor]] = {kind: [] for kind in KINDS}
        for stride, filters in zip((8, 16, 32), self.filters, strict=True):
            noise = filters(images).permute(0, 2, 3, 1)
            seen = contrast[:, :, ::stride, ::stride].permute(0, 2, 3, 1)
            score, distance, offset = noise.split([2, 8, 20], dim=3)
            sides = 16 / stride
            rows[1].append(torch.sigmoid(20 * (seen - 0.72) + 0.3 * score))
            rows[4].append(sides * (1 + 0.3 * torch.tanh(distance)))
            rows[10].append(sides * (SHAPE.repeat(2) + 0.1 * torch.tanh(offset)))
        shape = (1, -1) if self.batched else (-1,)
        return tuple(level.reshape(*shape, kind) for kind in KINDS for level in rows[kind])


def mean(picture: torch.Tensor, side: int) -> torch.Tensor:
    rows = functional.avg_pool2d(picture, (side, 1), 1, (side // 2, 0))
    return functional.avg_pool2d(rows, (1, side), 1, (0, side // 2))


class SmallRecogniser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        steep, mild = nn.PReLU(8), nn.PReLU(16)
        steep.weight.data, mild.weight.data = torch.linspace(-0.5, 1.5, 8), torch.linspace(-0.5, 1, 16)
        first, second = nn.Conv2d(3, 8, 7, stride=4), nn.Conv2d(8, 16, 5, stride=4)
        self.body = nn.Sequential(first, nn.BatchNorm2d(8), steep, second, mild, nn.Flatten())
        self.embedding = nn.Linear(16 * 36, 512)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return self.embedding(self.body(crops))


def export(model: nn.Module, example: torch.Tensor, path: Path, outputs: int, opset: int = 17) -> Path:
    axes = {"x": {2: "h", 3: "w"} if outputs == 9 else {0: "batch"}}
    names = [f"o{i}" for i in range(outputs)]
    torch.onnx.export(
        model.eval(), (example,), str(path), input_names=["x"], output_names=names, dynamic_axes=axes,
        opset_version=opset, dynamo=False,
    )  # fmt: skip
    return path
