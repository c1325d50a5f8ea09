"""xLSTM's matrix memory against the plain loop with its running maximum inside the gradient."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ShapeError
from ember_ml.ops.recurrence import mlstm
from ember_ml.ops.recurrence.linear_attention import sizes

torch = pytest.importorskip("torch", reason="the oracle of these tests is torch's autograd")
from tests.ops.oracle import check, check_slopes, mlx_peak, near  # noqa: E402

RNG = np.random.default_rng(19)


def loop(q, k, v, i, f, memory=None, m=None, eps=1e-6):
    B, L, H, dv = v.shape
    C = torch.zeros(B, H, k.shape[-1], dv + 1, dtype=v.dtype) if memory is None else memory
    m = torch.zeros(B, H, dtype=v.dtype) if m is None else m
    v, out = torch.cat([v, torch.ones_like(v[..., :1])], -1), []
    for t in range(L):
        log_f = torch.nn.functional.logsigmoid(f[:, t])
        now = torch.maximum(log_f + m, i[:, t])
        C = torch.exp(log_f + m - now)[..., None, None] * C + torch.exp(i[:, t] - now)[..., None, None] * (
            k[:, t, :, :, None] * v[:, t, :, None])
        m, o = now, torch.einsum("bhkv,bhk->bhv", C, q[:, t])
        out.append(o[..., :dv] / (torch.maximum(o[..., dv:].abs(), torch.exp(-m)[..., None]) + eps))
    return torch.stack(out, 1), C, m


def case(length, heads=2, dk=3, dv=4, batch=2, state=True, gate=1.0):
    arrays = {"q": RNG.standard_normal((batch, length, heads, dk)), "k": RNG.standard_normal((batch, length, heads, dk)),
              "v": RNG.standard_normal((batch, length, heads, dv)), "i": gate * RNG.standard_normal((batch, length, heads)),
              "f": 2.0 + gate * RNG.standard_normal((batch, length, heads))}
    if state:
        arrays |= {"memory": RNG.standard_normal((batch, heads, dk, dv + 1)), "m": RNG.standard_normal((batch, heads))}
    return arrays


def ours(chunk=64, eps=1e-6):
    def run(q, k, v, i, f, memory=None, m=None):
        h, (memory, m) = mlstm(q, k, v, i, f, None if memory is None else (memory, m), chunk=chunk, eps=eps)
        return h, memory, m
    return run


def h_alone(fn):
    """C and n are kept in m's scale: with m a constant to the gradient only h, which does not depend on it, is compared."""
    return lambda **kw: fn(**kw)[:1]


@pytest.mark.parametrize("length, chunk", [(1, 64), (5, 1), (21, 3), (21, 8), (37, 16), (37, 64)])
def test_values_equal_the_loop(backend, length, chunk):
    dtype = "float32" if backend == "mlx" else "float64"
    arrays = case(length)
    got = ours(chunk)(**{n: em.tensor(a.astype(dtype)) for n, a in arrays.items()})
    want = loop(**{n: torch.tensor(a) for n, a in arrays.items()})
    for y, w, what in zip(got, want, ("h", "C and n", "m")):
        near(y, w.numpy(), 2e-5 if backend == "mlx" else 1e-11, what)


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("length, chunk", [(1, 64), (21, 8), (37, 16)])
def test_gradients_equal_the_loop_s(backend, length, chunk, state):
    """Without eps, since that is added in m's scale."""
    arrays = case(length, state=state)
    if not state:
        arrays["q"][:, 0] *= 0.1                           # a large one makes h = v or -v: its gradient is zero, and errors relative to nothing
    check(backend, h_alone(ours(chunk, eps=0.0)), h_alone(lambda **kw: loop(**kw, eps=0.0)), arrays, slack=4.0)


def test_many_segments_are_one(backend, monkeypatch):
    """Segments of two chunks, so that states and their gradients cross from one to the next."""
    monkeypatch.setitem(sizes.__globals__, "WORKSPACE", 2 * 2 * 2 * 4 * 4)
    check(backend, h_alone(ours(4, eps=0.0)), h_alone(lambda **kw: loop(**kw, eps=0.0)), case(43), slack=4.0)


def test_gradients_through_a_state_handed_on(backend):
    """h of the second call sees the first one's inputs through C and m together."""
    def halves(memory, m, **inputs):
        first, state = mlstm(*[x[:, :13] for x in inputs.values()], (memory, m), eps=0.0, chunk=8)
        return em.ops.concat([first, mlstm(*[x[:, 13:] for x in inputs.values()], state, eps=0.0, chunk=8)[0]], axis=1),

    check(backend, halves, h_alone(lambda **kw: loop(**kw, eps=0.0)), case(21), slack=4.0)


def test_gradients_are_slopes():
    check_slopes(h_alone(ours(8, eps=0.0)), case(11, batch=1))


@pytest.mark.parametrize("dtype, eps", [("float16", 2.0 ** -10), ("bfloat16", 2.0 ** -7)])
def test_half_precision_is_float32_inside(backend, dtype, eps):
    rounded = {n: em.tensor(a.astype("float32")).astype(dtype) for n, a in case(33, state=False).items()}
    h, memory, m = ours(8)(**rounded)
    assert str(h.dtype) == dtype and str(memory.dtype) == str(m.dtype) == "float32"
    want, last, _ = loop(**{n: torch.tensor(t.astype("float32").numpy()).double() for n, t in rounded.items()})
    near(h.astype("float32"), want.numpy(), eps, "h")
    near(memory, last.numpy(), 2e-5, "C and n")


def test_memory_of_the_gradient_on_mlx():
    """Twice the length: at most 1.5 times the bytes that must be there more."""
    pytest.importorskip("mlx.core")
    (short, io), (long, more) = (mlx_peak(lambda **kw: mlstm(**kw)[0], case(n, heads=2, dk=32, dv=32, state=False))
                                 for n in (4096, 8192))
    assert long - short <= 1.5 * (more - io)


def test_compiled_is_eager_on_mlx():
    pytest.importorskip("mlx.core")
    with em.using("mlx"):
        check("mlx", h_alone(ours(8, eps=0.0)), h_alone(lambda **kw: loop(**kw, eps=0.0)), case(21, state=False),
              modes=("auto",), compiled=True, slack=4.0)


def test_gates_of_any_size(backend):
    """Input gates of +-60, whose exponentials have no float32; forget gates of -60 and 60."""
    arrays = case(40, state=False, gate=20.0)
    check(backend, h_alone(ours(16)), h_alone(loop), arrays, ["q", "k", "v"], slack=20.0)


def test_the_state_continues(backend):
    a = {n: em.tensor(x.astype("float32")) for n, x in case(23).items()}
    whole, *last = ours(8)(**a)
    parts, state = [], (a.pop("memory"), a.pop("m"))
    for start, stop in ((0, 9), (9, 10), (10, 11), (11, 23)):
        h, state = mlstm(*[x[:, start:stop] for x in a.values()], state, chunk=8)
        parts.append(h)
    near(em.ops.concat(parts, axis=1), whole.numpy(), 1e-5, "h")
    for got, want in zip(state, last):
        near(got, want.numpy(), 1e-5, "state")


@pytest.mark.parametrize("name, shape, says", [("i", (2, 9), "i of shape"), ("f", (2, 9, 3), "f of shape"), ("v", (2, 9, 4), "v of shape"),
                                               ("k", (2, 9, 2, 5), "q of k's shape")])
def test_misuse_is_told(name, shape, says):
    with em.using("numpy"):
        arrays = {n: em.tensor(a) for n, a in case(9, state=False).items()}
        with pytest.raises(ShapeError, match=f"mlstm: expected {says}"):
            mlstm(**{**arrays, name: em.ops.ones(shape)})
