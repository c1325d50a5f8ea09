"""torch's operators that stand in a compiled loss have the gradients that a training step asks for outside of it."""

import pytest

from tests.conftest import require_engine


@pytest.fixture(scope="module")
def torch():
    require_engine("torch")
    import torch

    from ember_ml.backend import get
    get("torch")                                           # registers the operators
    return torch


def numbers(torch, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)), requires_grad=True)


def test_linear_scan(torch):
    a, b, initial = numbers(torch, 2, 5, 3), numbers(torch, 2, 5, 3), numbers(torch, 2, 3)
    assert torch.autograd.gradcheck(torch.ops.ember.linear_scan, (a, b, initial))


@pytest.mark.parametrize("skip, future", [(False, False), (True, False), (True, True)])
def test_convolve_rows(torch, skip, future):
    x, k = numbers(torch, 2, 3, 6), numbers(torch, 3, 4)
    D, k_reverse = numbers(torch, 3) if skip else None, numbers(torch, 3, 2) if future else None
    assert torch.autograd.gradcheck(torch.ops.ember.convolve_rows, (x, k, D, k_reverse))
