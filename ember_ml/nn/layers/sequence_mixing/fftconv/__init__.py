"""Long convolutions by FFT as layers, and `fftconv`, the function that they call."""

from ember_ml.nn.layers.sequence_mixing.fftconv.long_conv import LongConv, LongConvConfig
from ember_ml.ops import fftconv
from ember_ml.registry import layers

#: the architecture document's names for the long convolution
FFTConv, FFTConvConfig = layers.register("fftconv")(LongConv), LongConvConfig

__all__ = ["FFTConv", "FFTConvConfig", "LongConv", "LongConvConfig", "fftconv"]
