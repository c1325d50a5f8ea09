"""Modal filters and states against their sums, written out in float64; long ones in little memory."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import ops
from ember_ml.errors import ShapeError
from tests.ops.oracle import check, near

torch = pytest.importorskip("torch", reason="the oracle of these tests is torch's autograd")
RNG = np.random.default_rng(31)


def case(complex, channels=2, modes=3, length=None, state=False, batch=2):
    shape = (channels, modes)
    tail = (2,) if complex else ()
    arrays = {"log_decay": np.log(RNG.uniform(0.5, 0.98, shape)), "residues": RNG.standard_normal(shape + tail)}
    if complex:
        arrays["angle"] = RNG.uniform(-3, 3, shape)
    if length:
        arrays["u"] = RNG.standard_normal((batch, channels, length))
    if state:
        arrays["state"] = RNG.standard_normal((batch, *shape, *tail))
    return arrays


def as_complex(x, angle):
    return x + 0j if angle is None else torch.view_as_complex(x.contiguous())


def poles(log_decay, angle):
    return torch.exp(log_decay + 0j if angle is None else torch.complex(log_decay, angle))


def back(state, angle):
    return state.real if angle is None else torch.view_as_real(state)


@pytest.mark.parametrize("complex", [False, True])
@pytest.mark.parametrize("length", [1, 2, 10, 17])
def test_the_filter_is_its_sum(backend, complex, length):
    def loop(log_decay, residues, angle=None):
        p, r = poles(log_decay, angle), as_complex(residues, angle)
        return (torch.stack([(r * p ** t).sum(-1).real for t in range(length)], -1),)

    check(backend, lambda log_decay, residues, angle=None: (ops.modal_filter(log_decay, angle, residues, length),), loop, case(complex), slack=10.0)


@pytest.mark.parametrize("complex", [False, True])
@pytest.mark.parametrize("length, chunk", [(1, 4), (9, 4), (8, 4), (7, 64)])
def test_the_state_is_that_of_the_walk(backend, complex, length, chunk, monkeypatch):
    """With a state before, and what the state gives afterwards."""
    from ember_ml.ops import modal
    monkeypatch.setattr(modal, "CHUNK", chunk)

    def ours(u, state, log_decay, residues, angle=None):
        after = ops.modal_state(u, log_decay, angle, state)
        y, stepped = ops.modal_step(u[:, :, 0], state, log_decay, angle, residues)
        return after, ops.modal_response(after, log_decay, angle, residues, 5), y, stepped

    def loop(u, state, log_decay, residues, angle=None):
        p, r, s = poles(log_decay, angle), as_complex(residues, angle), as_complex(state, angle)
        first = p * s + u[:, :, 0, None]
        for t in range(length):
            s = p * s + u[:, :, t, None]
        rest = torch.stack([(r * p ** (t + 1) * s).sum(-1).real for t in range(5)], -1)
        return back(s, angle), rest, (r * first).sum(-1).real, back(first, angle)

    check(backend, ours, loop, case(complex, length=length, state=True), slack=10.0)
    empty = ops.modal_state(*[em.tensor(a.astype("float32")) for a in (np.ones((1, 2, 3)), np.zeros((2, 1)))], None)
    near(empty, np.full((1, 2, 1), 3.0), 1e-6, "the sum of inputs under poles of 1")


def test_a_long_prefill_takes_less_memory_than_states_times_inputs():
    """The sum over modes and times written out would hold 16 numbers an input, and transforms of them in the original."""
    tracemalloc = pytest.importorskip("tracemalloc")
    with em.using("numpy"):
        u = em.random.normal(em.random.key(0), (1, 4, 65536))
        log_decay = em.tensor(np.log(RNG.uniform(0.9, 0.999, (4, 16))).astype("float32"))
        tracemalloc.start()
        ops.modal_state(u, log_decay, None)
        h = ops.modal_filter(log_decay, None, log_decay, 65536)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    inputs = u.size * 4
    assert h.shape == (4, 65536) and peak < 4 * inputs, f"{peak / inputs:.1f} times the inputs"


def test_misuse_is_told():
    with em.using("numpy"):
        d, u = ops.zeros((2, 3)), ops.zeros((1, 2, 4))
        for call, says in ((lambda: ops.modal_filter(d, ops.zeros((2, 2)), d, 4), "log_decay and angle of shape"),
                           (lambda: ops.modal_filter(d, d, d, 4), r"residues of shape \(..., 2, 3, 2\), got \(2, 3\)"),
                           (lambda: ops.modal_state(u, ops.zeros((3, 3)), None), "channels = 3"),
                           (lambda: ops.modal_state(u, d, None, ops.zeros((1, 2, 4))), r"state of shape \(..., 2, 3\), got \(1, 2, 4\)")):
            with pytest.raises(ShapeError, match=says):
                call()
