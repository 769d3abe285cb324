"""The published face networks' architectures with random weights, in the published files' form, for measuring.

SCRFD-10GF with landmarks (Guo et al., "Sample and Computation Redistribution for Efficient Face Detection", 2021), with
the widths and depths of insightface's `scrfd_10g_bnkps`: a ResNet with a deep stem, a PAFPN, one head a stride. And
IResNet-100, ArcFace's backbone (Duta et al., "Improved Residual Networks", 2020; insightface's `arcface_torch`). The
published `scrfd_10g_bnkps.onnx` and `glintr100.onnx` are for research only and cannot be had without a download.
"""

from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from instantid.contract import EMBEDDING_SIZE
from miniature.detector import ANCHORS, STRIDES, ConvNorm
from miniature.faces import export_onnx

Model = TypeVar("Model", bound=nn.Module)

SCRFD_STEM = 56
SCRFD_STAGES = ((3, 56), (4, 88), (2, 88), (3, 224))
NECK, HEAD = 56, 80
IRESNET_STAGES = ((3, 64), (13, 128), (30, 256), (3, 512))
IRESNET_SIDE = 7
"""Side of the feature map before the embedding."""
FACE_SIDES = (2.0, 4.0)
"""Half the side of the boxes of a cell's two anchors, in strides."""
LANDMARKS = ((-0.35, -0.2), (0.35, -0.2), (0.0, 0.15), (-0.25, 0.5), (0.25, 0.5))
"""Landmarks of an upright face, in halves of its box's side from the centre."""


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
    """Features of strides 8, 16 and 32 for `[n, 3, H, W]`."""

    def __init__(self) -> None:
        super().__init__()
        half = SCRFD_STEM // 2
        self.stem = nn.Sequential(
            ConvNorm(3, half, stride=2), ConvNorm(half, half), ConvNorm(half, SCRFD_STEM), nn.MaxPool2d(2)
        )
        self.stages = nn.ModuleList()
        width = SCRFD_STEM
        for level, (depth, planes) in enumerate(SCRFD_STAGES):
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
        self.lateral = nn.ModuleList(nn.Conv2d(planes, NECK, 1) for _, planes in SCRFD_STAGES[1:])
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
    """Nine tensors for `[1, 3, H, W]`: scores, distances, landmark offsets, each for strides 8, 16, 32."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.neck = Backbone(), Neck()
        self.heads = nn.ModuleList(Head() for _ in STRIDES)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        levels = self.neck(self.backbone(images))
        kinds = zip(*(head(level) for head, level in zip(self.heads, levels, strict=True)), strict=True)
        return tuple(tensor for kind in kinds for tensor in kind)


def rows(features: Tensor, width: int) -> Tensor:
    """Reshape `[1, anchors * width, H, W]` to `[H * W * anchors, width]`, the order of the published export."""
    return features.permute(0, 2, 3, 1).reshape(-1, width)


class IResNetBlock(nn.Module):
    """BatchNorm, 3x3 convolution, BatchNorm, PReLU, 3x3 convolution with the stride, BatchNorm; then the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.body(features) + self.shortcut(features)
        return out


class IResNet(nn.Module):
    """Embeddings `[n, 512]`, not normalised, for `[n, 3, 112, 112]` RGB in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        width = IRESNET_STAGES[0][1]
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width))
        blocks = []
        for depth, planes in IRESNET_STAGES:
            blocks.append(IResNetBlock(width, planes, 2))
            blocks.extend(IResNetBlock(planes, planes, 1) for _ in range(depth - 1))
            width = planes
        self.blocks = nn.Sequential(*blocks)
        self.neck = nn.Sequential(nn.BatchNorm2d(width), nn.Flatten())
        self.embedding = nn.Sequential(
            nn.Linear(width * IRESNET_SIDE**2, EMBEDDING_SIZE), nn.BatchNorm1d(EMBEDDING_SIZE)
        )

    def forward(self, crops: Tensor) -> Tensor:
        embeddings: Tensor = self.embedding(self.neck(self.blocks(self.stem(crops))))
        return embeddings


def write_random_detector(path: Path, *, score_bias: float = -4.0, seed: int = 0) -> None:
    """Write SCRFD-10GF in the form of `scrfd_10g_bnkps.onnx`; a higher `score_bias` finds more "faces".

    Input `input.1` float32 `[1, 3, H, W]`; nine outputs `[anchors, 1 | 4 | 10]`, each kind for strides 8, 16, 32.
    The random heads draw face-like boxes and landmarks around their anchors, anywhere in the picture.
    """
    names = [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in STRIDES]
    axes = {"input.1": {2: "height", 3: "width"}, **{name: {0: f"rows_{name}"} for name in names}}
    export_onnx(random_detector(score_bias, seed), torch.zeros(1, 3, 640, 640), path, names, axes)


def write_random_recogniser(path: Path, *, float16: bool = False, seed: int = 0) -> None:
    """Write IResNet-100 in the form of `glintr100.onnx`: `input.1` `[n, 3, 112, 112]` to `[n, 512]`, not normalised."""
    model, crops = random_recogniser(seed), torch.zeros(1, 3, 112, 112)
    if float16:
        model, crops = model.half(), crops.half()
    export_onnx(model, crops, path, ["embedding"], {"input.1": {0: "batch"}, "embedding": {0: "batch"}})


def random_detector(score_bias: float, seed: int) -> Scrfd:
    """SCRFD-10GF with finite activations of about unit variance."""
    torch.manual_seed(seed)
    model = _calibrated(Scrfd(), _clouds(4, 256))
    with torch.no_grad():
        for head in model.heads:
            for conv, bias, spread in _heads(cast(Head, head), score_bias):
                conv.weight.normal_(std=spread / (HEAD * 9) ** 0.5)
                conv.bias = nn.Parameter(bias)
    return model


def random_recogniser(seed: int) -> IResNet:
    """IResNet-100 with finite activations of about unit variance."""
    torch.manual_seed(seed)
    return _calibrated(IResNet(), _clouds(4, 112))


def _heads(head: Head, score_bias: float) -> list[tuple[nn.Conv2d, Tensor, float]]:
    sides = torch.tensor(FACE_SIDES).reshape(ANCHORS, 1)
    landmarks = torch.tensor(LANDMARKS).reshape(1, -1)
    return [
        (head.score, torch.full((ANCHORS,), score_bias), 1.0),
        (head.distance, sides.expand(ANCHORS, 4).reshape(-1), 0.2),
        (head.landmark, (sides * landmarks).reshape(-1), 0.1),
    ]


def _calibrated(model: Model, examples: Tensor) -> Model:
    """He initialisation, then BatchNorm statistics from one batch of noise (cumulative average)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.momentum = None
    with torch.no_grad():
        model.train()(examples)
    return model.eval()


def _clouds(count: int, side: int) -> Tensor:
    """Noise of all scales, `[count, 3, side, side]` in [-1, 1]: more like photos than white noise is."""
    octaves = [torch.randn(count, 3, width, width) for width in (2, 4, 8, 16, 32, 64)]
    sized = [functional.interpolate(octave, size=(side, side), mode="bilinear") for octave in octaves]
    return torch.stack(sized).sum(dim=0).mul(0.3).clamp(-1, 1)
