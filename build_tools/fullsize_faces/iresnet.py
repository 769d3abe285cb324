"""IResNet-100, ArcFace's backbone (Duta et al., "Improved Residual Networks", 2020; insightface `arcface_torch`)."""

from torch import Tensor, nn

STAGES = ((3, 64), (13, 128), (30, 256), (3, 512))
FEATURE_SIDE = 7
EMBEDDING = 512


class Block(nn.Module):
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
    """`[n, 3, 112, 112]` RGB in [-1, 1] to embeddings `[n, 512]`, not normalised."""

    def __init__(self) -> None:
        super().__init__()
        width = STAGES[0][1]
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width))
        blocks = []
        for depth, planes in STAGES:
            blocks.append(Block(width, planes, 2))
            blocks.extend(Block(planes, planes, 1) for _ in range(depth - 1))
            width = planes
        self.blocks = nn.Sequential(*blocks)
        self.neck = nn.Sequential(nn.BatchNorm2d(width), nn.Flatten())
        self.embedding = nn.Sequential(nn.Linear(width * FEATURE_SIDE**2, EMBEDDING), nn.BatchNorm1d(EMBEDDING))

    def forward(self, crops: Tensor) -> Tensor:
        embeddings: Tensor = self.embedding(self.neck(self.blocks(self.stem(crops))))
        return embeddings
