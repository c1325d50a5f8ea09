"""How tensors are exchanged with Python, NumPy and DLPack."""
