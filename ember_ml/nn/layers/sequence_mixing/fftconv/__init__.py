"""Long convolutions by FFT as layers."""
