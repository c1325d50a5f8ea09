"""Long convolutions by FFT as layers."""

from ember_ml.nn.layers.sequence_mixing.fftconv.long_conv import LongConv, LongConvConfig
from ember_ml.registry import layers

#: the architecture document's names for the long convolution
FFTConv, FFTConvConfig = layers.register("fftconv")(LongConv), LongConvConfig

__all__ = ["FFTConv", "FFTConvConfig", "LongConv", "LongConvConfig"]
