"""Sequence mixers: layers that mix positions, with a parallel form and a step."""
