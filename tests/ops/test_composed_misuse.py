"""What functions made of ops say to arguments that do not fit."""

import pytest

import ember_ml as em
from ember_ml import ops
from ember_ml.errors import ShapeError

ONES = em.ones


@pytest.mark.parametrize("call, fault", [
    (lambda: ops.einsum("ij,jk->ik", ONES((2, 3))), "expected 2 tensors"),
    (lambda: ops.einsum("ij,jk->ik", ONES((2, 3)), ONES((4, 2))), "one length for axis 'j'"),
    (lambda: ops.einsum("ii->i", ONES((2, 2))), "each letter once"),
    (lambda: ops.einsum("ij->ik", ONES((2, 2))), "among those of the tensors"),
    (lambda: ops.einsum("i->i", ONES((2, 2))), "expected 1 axes"),
    (lambda: ops.einsum("i?->i", ONES((2, 2))), "expected letters"),
    (lambda: ops.conv2d(ONES((1, 2, 3, 3)), ONES((4, 3, 2, 2))), r"weight \(O, C / groups, K, K'\)"),
    (lambda: ops.conv2d(ONES((1, 2, 3, 3)), ONES((4, 2, 5, 2))), r"at least \(5, 2\) positions"),
    (lambda: ops.conv2d(ONES((1, 2, 3, 3)), ONES((4, 2, 2, 2)), stride=0), "stride of at least 1"),
    (lambda: ops.conv2d(ONES((1, 2, 3, 3)), ONES((4, 2, 2, 2)), ONES((3,))), r"bias of shape \(4,\)"),
    (lambda: ops.conv_transpose2d(ONES((1, 2, 3, 3)), ONES((4, 3, 2, 2))), r"weight \(C, O / groups, K, K'\)"),
    (lambda: ops.conv_transpose2d(ONES((1, 2, 3, 3)), ONES((2, 3, 2, 2)), padding=2), r"padding from 0 to \(1, 1\)"),
    (lambda: ops.conv_transpose1d(ONES((1, 2, 3, 3)), ONES((2, 3, 2))), r"x \(B, C, L\)"),
    (lambda: ops.max_pool2d(ONES((1, 2, 3)), 2), r"x \(B, C, H, W\)"),
    (lambda: ops.avg_pool2d(ONES((1, 2, 3, 3)), 4), r"at least \(4, 4\)"),
    (lambda: ops.max_pool1d(ONES((1, 2, 3)), 0), "at least 1"),
    (lambda: ops.segment_sum(ONES((3, 2)), em.tensor([0, 1]), 2), r"segments \(N,\)"),
    (lambda: ops.associative_scan(ops.add, (ONES((3,)), ONES((4,)))), "one length along axis 0"),
])
def test_fault(call, fault):
    with em.using("numpy"), pytest.raises(ShapeError, match=fault):
        call()


def test_segments_out_of_range():
    with em.using("numpy"), pytest.raises(IndexError, match="segment_sum: expected indices in"):
        ops.segment_sum(em.ones((2, 1)), em.tensor([0, 2]), 2)
