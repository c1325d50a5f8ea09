"""EmberTensor and its dtypes."""
