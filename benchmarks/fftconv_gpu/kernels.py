"""The long convolution on CUDA, for a plan and as the op has it."""

from functools import partial

from ember_ml.backend.cupy.kernels import KERNELS, Cuda
from ember_ml.kernels import fftconv_launch

spectrum, forward, backward = (partial(f, Cuda()) for f in (fftconv_launch.spectrum, fftconv_launch.forward, fftconv_launch.backward))
fftconv, fftconv_grad = KERNELS["fftconv"], KERNELS["fftconv_grad"]
