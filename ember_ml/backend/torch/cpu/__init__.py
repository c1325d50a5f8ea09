"""Own code for torch on a CPU: the transforms of its MKL, called in place."""
