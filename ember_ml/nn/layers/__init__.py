"""Layers: channel mixers treat positions alone, sequence mixers mix them. Importing this registers them all."""

from ember_ml.nn.layers.channel_mixing.block_diagonal import BlockDiagonal, BlockDiagonalConfig
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.channel_mixing.gated_linear import GatedLinear, GatedLinearConfig
from ember_ml.nn.layers.channel_mixing.gated_mlp import GatedMLP, GatedMLPConfig
from ember_ml.nn.layers.channel_mixing.mlp import MLP, MLPConfig
from ember_ml.nn.layers.channel_mixing.norm import GroupNorm, GroupNormConfig, LayerNorm, LayerNormConfig, RMSNorm, RMSNormConfig
from ember_ml.nn.layers.channel_mixing.rwkv import RWKVChannelMixing, RWKVChannelMixingConfig
from ember_ml.nn.layers.dropout import Dropout, DropoutConfig, dropout
from ember_ml.nn.layers.embedding import Embedding, EmbeddingConfig
from ember_ml.nn.layers.sequence_mixing.attention.gated_linear_attention import (
    GatedLinearAttention, GatedLinearAttentionConfig,
)
from ember_ml.nn.layers.sequence_mixing.attention.feature_maps import FeatureMap
from ember_ml.nn.layers.sequence_mixing.attention.linear import LinearAttention, LinearAttentionConfig
from ember_ml.nn.layers.sequence_mixing.attention.retention import Retention, RetentionConfig
from ember_ml.nn.layers.sequence_mixing.attention.rope import Llama3Config, RoPEConfig
from ember_ml.nn.layers.sequence_mixing.attention.self_attention import SelfAttention, SelfAttentionConfig
from ember_ml.nn.layers.sequence_mixing.feature_extraction import FeatureExtraction, FeatureExtractionConfig
from ember_ml.nn.layers.sequence_mixing.fftconv import FFTConv, FFTConvConfig, LongConv, LongConvConfig
from ember_ml.nn.layers.sequence_mixing.gated_conv import GatedConv, GatedConvConfig
from ember_ml.nn.layers.sequence_mixing.gated_delta_net import GatedDeltaNet, GatedDeltaNetConfig
from ember_ml.nn.layers.sequence_mixing.gated_short_conv import GatedShortConv, GatedShortConvConfig
from ember_ml.nn.layers.sequence_mixing.hyena import Hyena, HyenaConfig
from ember_ml.nn.layers.sequence_mixing.hyena_filter import HyenaFilter, HyenaFilterConfig
from ember_ml.nn.layers.sequence_mixing.inner_filter import ModalFilter, ModalFilterConfig, TapsFilter, TapsFilterConfig
from ember_ml.nn.layers.sequence_mixing.mamba import Mamba, MambaConfig
from ember_ml.nn.layers.sequence_mixing.mamba2 import Mamba2, Mamba2Config
from ember_ml.nn.layers.sequence_mixing.mlstm import LargeMLSTM, LargeMLSTMConfig, MLSTM, MLSTMConfig
from ember_ml.nn.layers.sequence_mixing.rational_filter import RationalFilter, RationalFilterConfig
from ember_ml.nn.layers.sequence_mixing.recurrent.cfc import CfC, CfCConfig, WiredCfC, WiredCfCConfig
from ember_ml.nn.layers.sequence_mixing.parallel import BranchConfig, Parallel, ParallelConfig
from ember_ml.nn.layers.sequence_mixing.recurrent.gru import GRU, GRUConfig
from ember_ml.nn.layers.sequence_mixing.recurrent.lstm import LSTM, LSTMConfig
from ember_ml.nn.layers.sequence_mixing.recurrent.ltc import LTC, LTCConfig
from ember_ml.nn.layers.sequence_mixing.recurrent.min_gru import MinGRU, MinGRUConfig
from ember_ml.nn.layers.sequence_mixing.recurrent.rnn import RNN, RNNConfig
from ember_ml.nn.layers.sequence_mixing.recurrent.wirings import NCP, AutoNCP, FullyConnected, RandomWiring, Wiring
from ember_ml.nn.layers.sequence_mixing.rg_lru import RGLRU, RGLRUConfig
from ember_ml.nn.layers.sequence_mixing.rwkv import RWKV4, RWKV4Config, RWKV5, RWKV5Config, RWKV6, RWKV6Config
from ember_ml.nn.layers.sequence_mixing.rwkv7 import RWKV7, RWKV7Config
from ember_ml.nn.layers.sequence_mixing.short_conv import ShortConv, ShortConvConfig
from ember_ml.nn.layers.sequence_mixing.slstm import SLSTM, SLSTMConfig
from ember_ml.nn.layers.pool import Pool, PoolConfig
from ember_ml.nn.layers.residual import (
    Affine, AffineResidualConfig, ConstantResidualConfig, Decay, DecayResidualConfig, Feedforward, Highway, HighwayResidualConfig, Residual,
    ResidualConfig,
)

#: the architecture document's name
FeatureExtractionModule = FeatureExtraction

__all__ = [name for name in dir() if name[0].isupper() or name == "dropout"]
