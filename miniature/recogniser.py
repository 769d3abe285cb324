"""A face recogniser of ArcFace's form (Deng et al., 2019): a thin ResNet from 112x112 pixels to 512 numbers."""

from torch import Tensor, nn

from miniature.detector import ConvNorm, Residual

SIDE = 112
EMBEDDING = 512
INPUT_MEAN, INPUT_STD = 127.5, 127.5


class Recogniser(nn.Module):
    """It has about 0.7 million weights and takes 35 MMAC a face."""

    def __init__(self, widths: tuple[int, int, int, int] = (16, 32, 64, 96), neck: int = 16) -> None:
        super().__init__()
        before = 3
        layers: list[nn.Module] = []
        for width in widths:
            layers += [ConvNorm(before, width, stride=2), Residual(width)]
            before = width
        self.body = nn.Sequential(*layers)
        self.neck = ConvNorm(before, neck, kernel=1, act=False)
        norm = nn.BatchNorm1d(EMBEDDING).requires_grad_(False)
        self.embed = nn.Sequential(nn.Linear(neck * (SIDE // 16) ** 2, EMBEDDING, bias=False), norm)

    def forward(self, faces: Tensor) -> Tensor:
        """Raw embeddings `[n, 512]`, of length about 20, for `[n, 3, 112, 112]` RGB, `(x - 127.5) / 127.5`."""
        features: Tensor = self.neck(self.body(faces))
        embeddings: Tensor = self.embed(features.flatten(1))
        return embeddings
