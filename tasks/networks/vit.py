"""Vision transformer. Dosovitskiy et al.: An Image is Worth 16x16 Words, ICLR 2021, arXiv 2010.11929.

Pre-norm blocks, learned positions and, instead of a class token, the mean over all tokens (Beyer, Zhai, Kolesnikov:
Better plain ViT baselines for ImageNet-1k, arXiv 2205.01580). The gated block is that of Shazeer: GLU Variants Improve
Transformer, arXiv 2002.05202, equations 5 and 6.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations.checks import check_bool, check_int, check_number
from tasks.base import ActLayer
from tasks.networks.layers import image_channels


class VisionTransformer(nn.Module):
    """Patches as tokens, ``depth`` blocks of self-attention and a two-layer MLP, layer norm, mean, linear.

    The one activation of each block stands between the MLP's layers; it sees tokens (N, T, hidden) with
    ``channel_dim=-1``. Units that need neighboring positions, such as FReLU, cannot stand there.

    All weights are drawn from a normal distribution of standard deviation 0.02, cut at two of them, whatever the
    activation; biases are 0.

    Args:
        act_layer: called once for each block.
        input_shape: (C, H, W) of one sample.
        num_outputs: number of classes.
        patch_size: side of the square patches, which must divide height and width.
        dim: width of the tokens, a multiple of ``num_heads``.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: width of the MLP's hidden layer as a multiple of ``dim``.
        gated: use (V x) act(W x) in place of act(W x), with two thirds of the hidden width, so that both forms have
            the same number of parameters: SwiGLU with Swish, GEGLU with GELU, ReGLU with ReLU.

    Shape:
        (N, C, H, W) to (N, num_outputs).

    Raises:
        ValueError: sizes that do not divide each other, or a value outside its range.

    Examples:
        >>> import torch
        >>> from activations.torch_nn import GELU
        >>> network = VisionTransformer(GELU, (3, 32, 32), 10, dim=48, depth=2)
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        act_layer: ActLayer,
        input_shape: Sequence[int],
        num_outputs: int,
        *,
        patch_size: int = 4,
        dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        gated: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"patch_size": patch_size, "dim": dim, "depth": depth, "num_heads": num_heads}
        for name, size in sizes.items():
            check_int(name, size, minimum=1)
        check_number("mlp_ratio", mlp_ratio, above=0)
        check_bool("gated", gated)
        channels = image_channels(input_shape)
        height, width = input_shape[1:]
        if height % patch_size or width % patch_size:
            raise ValueError(f"patch_size={patch_size}: must divide the images' {height} x {width}")
        if dim % num_heads:
            raise ValueError(f"dim={dim}: must be a multiple of num_heads={num_heads}")
        tokens = (height // patch_size) * (width // patch_size)
        hidden = max(1, round(dim * mlp_ratio))
        self.patches = nn.Conv2d(channels, dim, patch_size, patch_size)
        self.positions = nn.Parameter(torch.empty(1, tokens, dim))
        self.blocks = nn.Sequential(*(Block(act_layer, dim, num_heads, hidden, gated) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_outputs)
        nn.init.trunc_normal_(self.positions, std=0.02, a=-0.04, b=0.04)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                _init(module)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions  # (N, T, dim)
        return self.head(self.norm(self.blocks(x)).mean(1))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): equations 2 and 3 of the paper."""

    def __init__(self, act_layer: ActLayer, dim: int, num_heads: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = (GatedMLP if gated else MLP)(act_layer, dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762, section 3.2.2)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        # each (N, heads, T, d)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """W2 act(W1 x + b1) + b2 on every token."""

    def __init__(self, act_layer: ActLayer, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = act_layer(hidden, channel_dim=-1)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class GatedMLP(nn.Module):
    """W2 (act(W x + b) (V x + c)) + b2 on every token, the hidden width being two thirds of ``hidden``."""

    def __init__(self, act_layer: ActLayer, dim: int, hidden: int) -> None:
        super().__init__()
        hidden = max(1, round(hidden * 2 / 3))
        self.fc1 = nn.Linear(dim, hidden)
        self.act = act_layer(hidden, channel_dim=-1)
        self.gate = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)) * self.gate(x))


def _init(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
