"""A face detector of SCRFD's form (Guo et al., 2021), small enough for a CPU: thin ResNet, FPN, dense heads."""

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDES = (8, 16, 32)
ANCHORS = 2
WIDTHS = (1, 1, 1, 4, 4, 4, 10, 10, 10)
ANCHOR_SIZES = ((12.0, 24.0), (48.0, 96.0), (192.0, 320.0))
INPUT_MEAN, INPUT_STD = 127.5, 128.0


class ConvNorm(nn.Sequential):
    """3x3 or 1x1 convolution with BatchNorm, and ReLU unless `act` is off."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, act: bool = True) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True) if act else nn.Identity())


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, with ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = ConvNorm(width, width)
        self.second = ConvNorm(width, width, act=False)

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(features + self.second(self.first(features)))


class Detector(nn.Module):
    """It has about 0.8 million weights and takes 1.2 GMAC at 640x640."""

    def __init__(self, widths: tuple[int, int, int, int, int] = (16, 24, 40, 72, 96), neck: int = 48) -> None:
        super().__init__()
        stem, low, *levels = widths
        self.stem = nn.Sequential(ConvNorm(3, stem, stride=2), ConvNorm(stem, low, stride=2))
        inputs = [low, *levels[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(ConvNorm(before, after, stride=2), *(Residual(after) for _ in range(depth)))
            for before, after, depth in zip(inputs, levels, (1, 2, 2), strict=True)
        )
        self.lateral = nn.ModuleList(ConvNorm(width, neck, kernel=1) for width in levels)
        self.smooth = nn.ModuleList(ConvNorm(neck, neck) for _ in levels)
        self.tower = nn.ModuleList(ConvNorm(neck, neck) for _ in levels)
        self.score = nn.ModuleList(nn.Conv2d(neck, ANCHORS, 1) for _ in levels)
        self.box = nn.ModuleList(nn.Conv2d(neck, ANCHORS * 4, 1) for _ in levels)
        self.landmark = nn.ModuleList(nn.Conv2d(neck, ANCHORS * 10, 1) for _ in levels)
        self._start_heads(neck)

    def _start_heads(self, neck: int) -> None:
        for level, stride in enumerate(STRIDES):
            reach = torch.tensor(ANCHOR_SIZES[level]) / (2 * stride)
            starts = (torch.full((ANCHORS,), -4.6), reach.repeat_interleave(4), torch.zeros(ANCHORS * 10))
            for heads, start in zip((self.score, self.box, self.landmark), starts, strict=True):
                state = {"weight": 0.01 * torch.randn(len(start), neck, 1, 1), "bias": start}
                heads[level].load_state_dict(state)

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """The nine head maps `[n, anchors of a cell * k, H / stride, W / stride]` that `forward` reshapes."""
        features = self.stem(images)
        laterals = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            features = stage(features)
            laterals.append(lateral(features))
        for level in (1, 0):
            above = functional.interpolate(laterals[level + 1], scale_factor=2.0, mode="nearest")
            laterals[level] = laterals[level] + above
        towers = [self.tower[i](self.smooth[i](lateral)) for i, lateral in enumerate(laterals)]
        heads = (self.score, self.box, self.landmark)
        return tuple(head[i](tower) for head in heads for i, tower in enumerate(towers))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Nine tensors `[n, anchors, k]` for `[n, 3, H, W]` RGB, `(x - 127.5) / 128`, with sides divisible by 32.

        First the score logits (k = 1) for strides 8, 16, 32, then the distances to left, top, right and bottom (k = 4)
        and the landmark offsets (k = 10), both in strides from the anchor's centre. Cells are in row order, with two
        anchors each.
        """
        maps = zip(self.maps(images), WIDTHS, strict=True)
        return tuple(cells.permute(0, 2, 3, 1).reshape(len(images), -1, width) for cells, width in maps)


class PublishedForm(nn.Module):
    """The detector with the outputs of `scrfd_10g_bnkps.onnx`: scores in [0, 1] and no batch dimension."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = zip(self.detector.maps(images), WIDTHS, strict=True)
        rows = [cells.permute(0, 2, 3, 1).reshape(-1, width) for cells, width in maps]
        return (*(torch.sigmoid(logits) for logits in rows[:3]), *rows[3:])


def anchor_centres(height: int, width: int) -> list[Tensor]:
    """Anchor centres `[anchors, 2]` (x, y) in pixels for each stride: `(column * stride, row * stride)`, twice."""
    centres = []
    for stride in STRIDES:
        rows, columns = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        grid = torch.stack([columns, rows], -1).reshape(-1, 1, 2).expand(-1, ANCHORS, 2)
        centres.append(grid.reshape(-1, 2).float() * stride)
    return centres
