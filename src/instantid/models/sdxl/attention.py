"""Cross attention with keys and values that were computed once per request, and the face beside the text.

Decoupled cross attention (IP-Adapter, arXiv 2308.06721, section 3.2): the same query meets the text's keys and
values and the face's own; `out = text + ip_adapter_scale * face`, before the output projection.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F


class KeysValues(NamedTuple):
    """Keys and values [rows, heads, n, d] for each cross-attention layer of one network."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class Projections(NamedTuple):
    """Key and value layers of every cross attention of one network, and their heads."""

    keys: Sequence[nn.Module]
    values: Sequence[nn.Module]
    heads: Sequence[int]

    @classmethod
    def of(cls, layers: Sequence[Any]) -> "Projections":
        return cls(*zip(*((layer.to_k, layer.to_v, layer.heads) for layer in layers), strict=True))

    def project(self, tokens: Tensor) -> KeysValues:
        """Keys and values of tokens [rows, n, d] for every layer."""
        keys, values = (
            tuple(project_heads(layer, tokens, heads) for layer, heads in zip(layers, self.heads, strict=True))
            for layers in (self.keys, self.values)
        )
        return KeysValues(keys, values)


class FaceAttention(NamedTuple):
    """What the UNet's cross attention adds for the face; `scale` [rows, 1, 1, 1] is `ip_adapter_scale`."""

    scale: Tensor
    face: KeysValues


class SelfAttention:
    """Attention of a picture to itself (diffusers' `attn1`); ignores the arguments meant for the other."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, *args: Any, context: Any = None, face: Any = None, **kwargs: Any
    ) -> Tensor:
        query, keys, values = (
            project_heads(layer, hidden_states, attn.heads) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        return _merge(attn, F.scaled_dot_product_attention(query, keys, values))


class CrossAttention:
    """Layer `index` of the network's cross attention (diffusers' `attn2`)."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        context: KeysValues | None = None,
        face: FaceAttention | None = None,
    ) -> Tensor:
        assert context is not None
        query = project_heads(attn.to_q, hidden_states, attn.heads)
        output = self._attend(query, context)
        if face is not None:
            output = output + face.scale * self._attend(query, face.face)
        return _merge(attn, output)

    def _attend(self, query: Tensor, context: KeysValues) -> Tensor:
        return F.scaled_dot_product_attention(query, context.keys[self.index], context.values[self.index])


def install(network: Any) -> list[Any]:
    """Give a diffusers UNet or ControlNet these processors; its cross-attention modules in diffusers' order.

    The order, down, up, mid, is the one in which the published adapter file counts its layers.
    """
    names = list(network.attn_processors)
    crossing = [name for name in names if ".attn2." in name]
    processors = {name: CrossAttention(crossing.index(name)) if name in crossing else SelfAttention() for name in names}
    network.set_attn_processor(processors)
    return [network.get_submodule(name.removesuffix(".processor")) for name in crossing]


def project_heads(layer: nn.Module, x: Tensor, heads: int) -> Tensor:
    """A linear layer's output split into heads: [b, n, c] to [b, heads, n, d]."""
    projected: Tensor = layer(x).unflatten(-1, (heads, -1))
    return projected.transpose(1, 2)


def _merge(attn: Any, x: Tensor) -> Tensor:
    return attn.to_out[0](x.transpose(1, 2).flatten(2))
