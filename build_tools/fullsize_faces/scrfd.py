"""SCRFD-10GF with landmarks (Guo et al., "Sample and Computation Redistribution for Efficient Face Detection", 2021).

Widths and depths are those of insightface's `scrfd_10g_bnkps`: ResNet with a deep stem, PAFPN, one head a stride.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDES = (8, 16, 32)
ANCHORS = 2
STEM = 56
STAGES = ((3, 56), (4, 88), (2, 88), (3, 224))
NECK = 56
HEAD = 80


class ConvNorm(nn.Sequential):
    """Convolution without bias and BatchNorm, then ReLU unless `act` is off."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, act: bool = True) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU() if act else nn.Identity())


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut of the ResNet-D form averages before its 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvNorm(inputs, outputs, stride=stride), ConvNorm(outputs, outputs, act=False))
        shortcut: list[nn.Module] = [nn.AvgPool2d(stride)] if stride > 1 else []
        if inputs != outputs or stride > 1:
            shortcut.append(ConvNorm(inputs, outputs, kernel=1, act=False))
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(self.body(features) + self.shortcut(features))


class Backbone(nn.Module):
    """`[n, 3, H, W]` to features of strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        half = STEM // 2
        self.stem = nn.Sequential(
            ConvNorm(3, half, stride=2), ConvNorm(half, half), ConvNorm(half, STEM), nn.MaxPool2d(2)
        )
        self.stages = nn.ModuleList()
        width = STEM
        for level, (depth, planes) in enumerate(STAGES):
            first = BasicBlock(width, planes, stride=1 if level == 0 else 2)
            self.stages.append(nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(depth - 1))))
            width = planes

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.stem(images)
        levels = []
        for stage in self.stages:
            features = stage(features)
            levels.append(features)
        return levels[1:]


class Neck(nn.Module):
    """Path aggregation network (Liu et al., 2018): top-down sums, then bottom-up sums."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(planes, NECK, 1) for _, planes in STAGES[1:])
        self.smooth = nn.ModuleList(nn.Conv2d(NECK, NECK, 3, padding=1) for _ in STRIDES)
        self.down = nn.ModuleList(nn.Conv2d(NECK, NECK, 3, stride=2, padding=1) for _ in STRIDES[1:])
        self.out = nn.ModuleList(nn.Conv2d(NECK, NECK, 3, padding=1) for _ in STRIDES[1:])

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        sums = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        for i in (2, 1):
            sums[i - 1] = sums[i - 1] + functional.interpolate(sums[i], size=sums[i - 1].shape[2:], mode="nearest")
        sums = [smooth(level) for smooth, level in zip(self.smooth, sums, strict=True)]
        for i in (0, 1):
            sums[i + 1] = sums[i + 1] + self.down[i](sums[i])
        return [sums[0], *(out(level) for out, level in zip(self.out, sums[1:], strict=True))]


class Head(nn.Module):
    """Scores, distances and landmark offsets of one stride, from one shared tower."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(ConvNorm(NECK, HEAD), ConvNorm(HEAD, HEAD), ConvNorm(HEAD, HEAD))
        self.score = nn.Conv2d(HEAD, ANCHORS, 3, padding=1)
        self.distance = nn.Conv2d(HEAD, ANCHORS * 4, 3, padding=1)
        self.landmark = nn.Conv2d(HEAD, ANCHORS * 10, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tower = self.tower(features)
        score = rows(self.score(tower), 1).sigmoid()
        return score, rows(self.distance(tower) * self.scale, 4), rows(self.landmark(tower), 10)


class Scrfd(nn.Module):
    """`[1, 3, H, W]` to nine tensors: scores, distances, landmark offsets, each for strides 8, 16, 32."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.neck = Backbone(), Neck()
        self.heads = nn.ModuleList(Head() for _ in STRIDES)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        levels = self.neck(self.backbone(images))
        kinds = zip(*(head(level) for head, level in zip(self.heads, levels, strict=True)), strict=True)
        return tuple(tensor for kind in kinds for tensor in kind)


def rows(features: Tensor, width: int) -> Tensor:
    """`[1, anchors * width, H, W]` as `[H * W * anchors, width]`, as the published export flattens it."""
    return features.permute(0, 2, 3, 1).reshape(-1, width)
