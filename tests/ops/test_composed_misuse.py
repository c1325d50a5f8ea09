"""What functions made of ops say to arguments that do not fit."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import ops
from ember_ml.errors import BackendMismatch, ConfigError, ShapeError, UnsupportedDtype, UnsupportedOp
from ember_ml.ops import optimizer

ONES = em.ones
RAW = np.ones((2, 3, 8), np.float32)


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


def _experts(**change):
    """moe_mlp of 4 experts, 3 tokens of 5 numbers and 6 hidden ones, with some arguments changed."""
    given = {"x": ONES((3, 5)), "weights": ONES((3, 1)), "plan": em.zeros((3, 1), dtype="int32"), "w1": ONES((4, 12, 5)),
             "w2": ONES((4, 5, 6)), "b1": ONES((4, 12)), "b2": ONES((4, 5)), "activation": "silu"}
    return ops.moe_mlp(**{**given, **change})


def _weights(z, ids):
    return ops.moe.softmax_weights(z, ids, normalize=False, eps=0.0, scale=1.0)


#: what a person passes by mistake, on every engine alike: arrays that are not wrapped, other shapes than those said, names mistyped
@pytest.mark.parametrize("call, error, fault", [
    (lambda: ops.fftconv(RAW, ONES((3, 8))), TypeError, "u to be an EmberTensor, got ndarray; make one with em.tensor"),
    (lambda: ops.fftconv(ONES((2, 3, 8)), None), TypeError, "k to be an EmberTensor, got NoneType"),
    (lambda: ops.fftconv(ONES((2, 3, 8)), ONES((3, 8)), 1.0), TypeError, "D to be an EmberTensor, got float"),
    (lambda: ops.fftconv(ONES((2, 3, 8)), ONES((3, 8)), dropout_mask=RAW[:, :, 0]), TypeError, "dropout_mask to be an EmberTensor"),
    (lambda: ops.fftconv(ONES((2, 3, 8)), ONES((3, 8)), dropout_mask=ONES((2, 3), dtype="complex64")), UnsupportedDtype, "real numbers"),
    (lambda: ops.fftconv(ONES((2, 3, 8)), ONES((3, 8)), head_dim=1.5), ShapeError, "head_dim to divide the 3 channels, got 1.5"),
    (lambda: ops.prepare_filter(RAW[0]), TypeError, "k to be an EmberTensor"),
    (lambda: ops.short_conv(RAW, ONES((3, 4))), TypeError, "x to be an EmberTensor"),
    (lambda: ops.short_conv(ONES((2, 3, 8)), ONES((3, 0))), ShapeError, "K >= 1"),
    (lambda: ops.where(ONES((3,)), ONES((3,)), 0.0), UnsupportedDtype, "where: expected condition .* bool, got one of float32; compare"),
    (lambda: ops.where(em.zeros((3,), dtype="int32"), ONES((3,)), ONES((3,))), UnsupportedDtype, "got one of int32"),
    (lambda: ops.where(1.0, ONES((3,)), ONES((3,))), UnsupportedDtype, "got float"),
    (lambda: ops.concat([ONES((2, 3)), ONES((3, 2))], axis=1), ShapeError, r"^concat: expected arguments that fit together; got x0=float32"),
    (lambda: ops.stack([ONES((2, 3)), ONES((3, 2))]), ShapeError, r"^stack: expected tensors of one shape, got \(2, 3\), \(3, 2\)"),
    (lambda: ops.concat([ONES((2,)), em.ones((2,), device="torch" if em.zeros(()).backend.name == "numpy" else "numpy")]), BackendMismatch,
     "^concat: expected tensors of one engine"),
    (lambda: em.zeros((3, 2)).__setitem__(slice(0, 2), ONES((5, 2))), ShapeError, "^index: expected"),
    (lambda: ops.linalg.solve(ONES((2, 2)), ONES((3, 3))), ShapeError, "^solve: expected"),
    (lambda: ops.moe_plan(RAW[0], 4), TypeError, "ids to be an EmberTensor"),
    (lambda: ops.moe_plan(em.zeros((3, 1), dtype="int32"), 0), ShapeError, "num_experts of at least 1, got 0"),
    (lambda: ops.moe_plan(em.zeros((3, 1), dtype="int32"), 4, block=3), ShapeError, "block 1.*, or None, got 3"),
    (lambda: ops.moe_combine(em.ones((3, 5), dtype="int32"), em.zeros((3, 1), dtype="int32"), ONES((3, 1))), UnsupportedDtype, "floating"),
    (lambda: ops.moe.softmax_choice(RAW[0], ONES((8,)), k=2), TypeError, "z to be an EmberTensor"),
    (lambda: ops.moe.softmax_choice(ONES((8,)), ONES((8,)), k=2), ShapeError, r"z \(T, E\)"),
    (lambda: ops.moe.softmax_choice(ONES((3, 8)), ONES((2,)), k=2), ShapeError, r"bias \(E,\) = \(8,\) .* got \(2,\)"),
    (lambda: ops.moe.softmax_choice(ONES((3, 8)), ONES((8,)), k=9), ShapeError, "k from 1 to E = 8, got 9"),
    (lambda: ops.moe.softmax_choice(ONES((3, 8), dtype="float16"), ONES((8,)), k=1), UnsupportedDtype, "float32 or float64, got float16"),
    (lambda: _weights(ONES((3, 8)), em.zeros((2, 2), dtype="int32")), ShapeError, r"ids \(T, k\)"),
    (lambda: _weights(ONES((3, 8)), ONES((3, 2))), UnsupportedOp, "softmax_weights: expected integer indices, got dtype float32"),
    (lambda: _weights(ONES((3, 0)), em.zeros((3, 1), dtype="int32")), ShapeError, "E >= 1"),
    (lambda: ops.moe_gather(ONES((3, 5)), em.zeros((3, 1), dtype="int32")), TypeError, r"plan to be a Plan.*moe_plan\(ids"),
    (lambda: ops.grouped_linear(ONES((3, 5)), ONES((2, 5, 5)), None), TypeError, "plan to be a Plan, got NoneType"),
    (lambda: ops.grouped_outer(ONES((3, 5)), RAW[0], None), TypeError, "b to be an EmberTensor"),
    (lambda: ops.moe_combine(ONES((0, 5)), em.zeros((3, 1), dtype="int32"), ONES((3, 1))), IndexError, "moe_combine: .* axis of length 0"),
    (lambda: _experts(plan=ONES((3, 1))), UnsupportedOp, "integer ids, got dtype float32"),
    (lambda: _experts(activation="relo"), ConfigError, "identity, relu.*got 'relo'"),
    (lambda: _experts(b1=ONES((4, 5))), ShapeError, r"b1 of shape \(4, 12\), got \(4, 5\)"),
    (lambda: _experts(b2=ONES((1, 5))), ShapeError, r"b2 of shape \(4, 5\), got \(1, 5\)"),
    (lambda: _experts(w2=ONES((5, 6))), ShapeError, r"w2 \(E, D_out, F\)"),
    (lambda: _experts(plan=em.zeros((3,), dtype="int32")), ShapeError, r"ids \(T, K\)"),
    (lambda: _experts(plan=[[0], [1], [2]]), TypeError, "plan to be an EmberTensor, got list"),
])
def test_what_was_meant_is_told(backend, call, error, fault):
    with pytest.raises(error, match=fault):
        call()


def test_segments_out_of_range():
    with em.using("numpy"), pytest.raises(IndexError, match="segment_sum: expected indices in"):
        ops.segment_sum(em.ones((2, 1)), em.tensor([0, 2]), 2)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_experts_out_of_range(backend, dtype):
    """They raise where values are looked at, and are moved to the nearest expert elsewhere: no foreign memory is read."""
    z, ids = em.tensor(np.log([[1.0, 2.0, 5.0]]).astype(np.float32)), em.tensor(np.array([[3, 2 ** 31 - 1, -4, 1]], dtype))
    with em.debug_checks(), pytest.raises(IndexError, match=r"softmax_weights: expected indices in \[-3, 2\]"):
        _weights(z, ids)
    if backend != "numpy":
        np.testing.assert_allclose(_weights(z, ids)[0].numpy(), [[0.625, 0.625, 0.125, 0.25]], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_rows_out_of_range_read_the_nearest_and_get_no_gradient(backend, dtype):
    """As in the kernels. NumPy raises, and so does every engine that checks."""
    rows, w = em.tensor(np.arange(1.0, 9.0, dtype=np.float32).reshape(4, 2)), em.tensor(np.float32([[1, 2], [4, 8]]))
    inverse = em.tensor(np.array([[3, 4], [-5, 2 ** 31 - 1]], dtype))
    with em.debug_checks(), pytest.raises(IndexError, match=r"moe_combine: expected indices in \[-4, 3\]"):
        ops.moe_combine(rows, inverse, w)
    if backend == "numpy":
        return
    for mode in ("auto", "tape"):
        loss = em.value_and_grad(lambda rows, w: ops.moe_combine(rows, inverse, w).sum(), (0, 1), mode=mode)
        value, (d_rows, d_w) = loss(rows, w)
        assert value.item() == 15 * 1 + 15 * 2 + 3 * 4 + 15 * 8
        assert d_rows.tolist() == [[0, 0]] * 3 + [[1, 1]] and d_w.tolist() == [[15, 15], [3, 15]]


def test_a_row_of_two_pairs_is_told_where_values_are_looked_at(backend):
    inverse = em.tensor(np.array([[0, -1], [3, 2]], np.int8))
    with em.debug_checks(), pytest.raises(IndexError, match="every row at most once in inverse, got row 3 2 times"):
        ops.moe_combine(ONES((4, 5)), inverse, ONES((2, 2)))


def test_messages_name_what_people_call():
    """An inner op either says whose it is, or no arguments of a person's reach it."""
    inside = {"cut", "bounded_indices", "row_indices", "add_at", "chunked_scan", "layered_scan_rows", "unit_inverse", "expert_activation"}
    places = (ops, ops.random, ops.fft, ops.linalg, ops.moe, optimizer)
    for name, record in ops.REGISTRY.items():
        if not record.body.__module__.startswith("ember_ml.ops"):      # other tests declare ops of their own
            continue
        known = record.public == "index" or any(hasattr(place, record.public) for place in places)
        assert known != (name in inside or name.endswith("_grad")), f"{name} is told as {record.public}"
