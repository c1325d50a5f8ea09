"""Own code for torch on NVIDIA GPUs: CuPy launches Ember's CUDA kernels on torch's tensors and stream."""
