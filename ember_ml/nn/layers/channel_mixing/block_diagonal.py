"""A linear layer whose matrix is block-diagonal: each block of channels is mapped by itself."""

from __future__ import annotations

from ember_ml.errors import ConfigError
from ember_ml.nn import initializers
from ember_ml.nn.layers.channel_mixing.base import ChannelMixer
from ember_ml.ops import matmul, permute_dims, random, reshape, swap_axes
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class BlockDiagonalConfig:
    """d_input: channels in and out. blocks: their number, which must divide d_input."""

    d_input: Size
    blocks: Size = 1


@layers.register("block_diagonal")
class BlockDiagonal(ChannelMixer):
    """y_b = x_b W_b^T for each of `blocks` neighbouring groups of channels; without bias.

    Args:
        config: see BlockDiagonalConfig. key: random key of the initial weights, uniform in +-1/sqrt(block length).

    Parameters: weight (blocks, n, n), n = d_input / blocks, outputs before inputs.

    Source: Beck et al. 2024, xLSTM, appendix A.4 (projections in blocks).
    """

    Config = BlockDiagonalConfig

    def __init__(self, config: BlockDiagonalConfig, key: EmberTensor | None = None):
        if config.d_input % config.blocks:
            raise ConfigError(f"block_diagonal: expected blocks to divide d_input = {config.d_input}, received {config.blocks}")
        self.config = config
        n = config.d_input // config.blocks
        self.weight = initializers.fan_in_uniform(key if key is not None else random.next_key(), (config.blocks, n, n), n)

    def forward(self, x: EmberTensor) -> EmberTensor:
        """(..., d_input), same shape."""
        blocks, n, _ = self.weight.shape
        rows = permute_dims(reshape(x, (-1, blocks, n)), (1, 0, 2))
        return reshape(permute_dims(matmul(rows, swap_axes(self.weight)), (1, 0, 2)), x.shape)
