"""Face tokens: the perceiver resampler of IP-Adapter (arXiv 2308.06721) as InstantID's `image_proj` uses it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

HEAD_DIM = 64


class PerceiverAttention(nn.Module):
    """Latents attend to the input and to themselves; q and k are each scaled by HEAD_DIM ** -0.25."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, inputs: Tensor, latents: Tensor) -> Tensor:
        inputs, latents = self.norm1(inputs), self.norm2(latents)
        keys, values = self.to_kv(torch.cat([inputs, latents], dim=1)).chunk(2, dim=-1)
        query, keys, values = map(split_heads, (self.to_q(latents), keys, values))
        scale = HEAD_DIM**-0.25
        weights = ((query * scale) @ (keys * scale).transpose(-2, -1)).float().softmax(dim=-1).to(values.dtype)
        return self.to_out((weights @ values).transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    """Raw face embedding [b, 512] to face tokens [b, 16, d]; sizes come from the tensors of the published file."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        queries, dim = tensors["latents"].shape[1:]
        inner, hidden = tensors["layers.0.0.to_q.weight"].shape[0], tensors["layers.0.1.1.weight"].shape[0]
        depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("layers."))
        output, embedding = tensors["proj_out.weight"].shape[0], tensors["proj_in.weight"].shape[1]
        self.latents = nn.Parameter(torch.empty(1, queries, dim))
        self.proj_in = nn.Linear(embedding, dim)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim, inner), _feed_forward(dim, hidden)]) for _ in range(depth)
        )
        self.proj_out = nn.Linear(dim, output)
        self.norm_out = nn.LayerNorm(output)
        self.load_state_dict(dict(tensors))

    def forward(self, embedding: Tensor) -> Tensor:
        """The embedding is cast to the model's dtype first."""
        inputs = self.proj_in(embedding.to(self.latents)[:, None])
        latents = self.latents.expand(len(inputs), -1, -1)
        for layer in self.layers:
            attention, feed_forward = layer.children()
            latents = attention(inputs, latents) + latents
            latents = feed_forward(latents) + latents
        return self.norm_out(self.proj_out(latents))


def split_heads(x: Tensor) -> Tensor:
    """[b, n, heads * HEAD_DIM] to [b, heads, n, HEAD_DIM]."""
    heads: Tensor = x.unflatten(-1, (-1, HEAD_DIM))
    return heads.transpose(1, 2)


def _feed_forward(dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, hidden, bias=False), nn.GELU(), nn.Linear(hidden, dim, bias=False)
    )
