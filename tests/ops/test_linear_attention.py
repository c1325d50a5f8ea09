"""S_t = Diag(e^g) S_{t-1} + k v^T, o_t = S_t^T q_t against the plain loop: every kind of decay, chunk and option."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ShapeError
from ember_ml.ops.recurrence import linear_attention
from ember_ml.ops.recurrence.linear_attention import sizes

torch = pytest.importorskip("torch", reason="the oracle of these tests is torch's autograd")
from tests.ops.oracle import check, check_slopes, mlx_peak, near  # noqa: E402

RNG = np.random.default_rng(13)


def loop(q, k, v, decay=None, initial=None, scale=1.0, normalize=None, exclusive=False, reset=None):
    B, L, H, dv = v.shape
    q, k = (x.repeat_interleave(H // x.shape[2], 2) for x in (q, k))
    if normalize is not None:
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    S = torch.zeros(B, H, k.shape[-1], v.shape[-1], dtype=v.dtype) if initial is None else initial
    decay = torch.zeros(1, 1, 1, 1, dtype=v.dtype) if decay is None else decay
    decay = torch.exp(decay).expand(B, L, H, -1)
    out = []
    for t in range(L):
        kept = S if reset is None else S * (~reset[:, t]).to(v.dtype).reshape(B, 1, 1, 1)
        now = decay[:, t, :, :, None] * kept + k[:, t, :, :, None] * v[:, t, :, None]
        read = kept if exclusive else now
        o = scale * torch.einsum("bhkv,bhk->bhv", read, q[:, t])
        out.append(o if normalize is None else o[..., :dv] / (o[..., dv:] + normalize))
        S = now
    return torch.stack(out, 1), S


def case(length, kind=None, heads=2, shared=1, dk=3, dv=4, batch=2, low=-2.0, wide=0):
    arrays = {"q": RNG.standard_normal((batch, length, heads // shared, dk)),
              "k": RNG.standard_normal((batch, length, heads // shared, dk)),
              "v": RNG.standard_normal((batch, length, heads, dv)),
              "initial": RNG.standard_normal((batch, heads, dk, dv + wide))}
    shape = {"head": (batch, length, heads, 1), "channel": (batch, length, heads, dk), "fixed head": (1, 1, heads, 1),
             "fixed channel": (1, 1, heads, dk)}
    if kind is not None:
        arrays["decay"] = RNG.uniform(low, 0.0, shape[kind])
    return arrays


KINDS = [None, "head", "channel", "fixed head", "fixed channel"]


def bind(fn, **options):
    return lambda **kw: fn(**kw, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length, chunk", [(1, 64), (5, 1), (21, 3), (21, 8), (37, 16), (37, 64)])
def test_equals_the_loop(backend, kind, length, chunk):
    check(backend, bind(linear_attention, chunk=chunk), loop, case(length, kind), modes=("auto",))


@pytest.mark.parametrize("kind", [None, "head", "channel"])
def test_the_tape_and_the_compiled_gradient_agree(backend, kind):
    check(backend, bind(linear_attention, chunk=16), loop, case(21, kind), modes=("tape",))
    if backend == "mlx":                                 # torch takes tens of seconds to compile one
        check(backend, bind(linear_attention, chunk=16), loop, case(21, kind), modes=("auto",), compiled=True)


@pytest.mark.parametrize("kind", KINDS)
def test_exclusive_reads_the_state_before(backend, kind):
    check(backend, bind(linear_attention, chunk=16, exclusive=True), bind(loop, exclusive=True), case(29, kind), modes=("auto",))


@pytest.mark.parametrize("kind", [None, "head", "channel"])
def test_shared_heads_scale_and_resets(backend, kind):
    arrays = case(27, kind, heads=4, shared=2)
    arrays["reset"] = RNG.random((2, 27)) < 0.2
    watched = [n for n in arrays if n != "reset"]
    check(backend, bind(linear_attention, chunk=8, scale=0.3), bind(loop, scale=0.3), arrays, watched, modes=("auto",))


@pytest.mark.parametrize("kind", KINDS)
def test_many_segments_are_one(backend, kind, monkeypatch):
    """Segments of two chunks, so that states and their gradients cross from one to the next."""
    monkeypatch.setitem(sizes.__globals__, "WORKSPACE", 2 * 2 * 2 * 4 * 4)
    check(backend, bind(linear_attention, chunk=4), loop, case(43, kind))
    check(backend, bind(linear_attention, chunk=4, exclusive=True), bind(loop, exclusive=True), case(43, kind), modes=("auto",))


@pytest.mark.parametrize("kind", [None, "head", "channel"])
def test_gradients_are_slopes(kind):
    arrays = case(11, kind, heads=4, shared=2, batch=1, low=-1.0)
    for name in ("decay",) if kind else ():
        arrays[name] -= 0.01                             # a decay is at most 0 on both sides of it
    check_slopes(bind(linear_attention, chunk=8), arrays)


@pytest.mark.parametrize("kind", [None, "head", "channel"])
def test_memory_of_the_gradient_on_mlx(kind):
    """Twice the length: at most 1.5 times the bytes that must be there more. A loop over steps would keep dk states' worth a step."""
    pytest.importorskip("mlx.core")
    (short, io), (long, more) = (mlx_peak(lambda **kw: linear_attention(**kw)[0], case(n, kind, heads=2, dk=32, dv=32))
                                 for n in (4096, 8192))
    assert long - short <= 1.5 * (more - io)


@pytest.mark.parametrize("kind", [None, "channel"])
def test_normalized(backend, kind):
    arrays = case(19, kind, wide=1)
    arrays["q"], arrays["k"] = np.abs(arrays["q"]) + 0.2, np.abs(arrays["k"]) + 0.2
    arrays["initial"][..., -1] = np.abs(arrays["initial"][..., -1])
    check(backend, bind(linear_attention, chunk=8, normalize=1e-3), bind(loop, normalize=1e-3), arrays, modes=("auto",), slack=3.0)


@pytest.mark.parametrize("kind", ["head", "channel"])
@pytest.mark.parametrize("decay", [-np.inf, -1e-7, -50.0])
def test_extreme_decays(backend, kind, decay):
    arrays = case(40, kind, low=-0.1)
    arrays["decay"] = np.where(RNG.random(arrays["decay"].shape) < 0.4, decay, arrays["decay"])
    watched = ["q", "k", "v", "initial"] + (["decay"] if np.isfinite(decay) else [])
    check(backend, bind(linear_attention, chunk=16), loop, arrays, watched, modes=("auto",))


@pytest.mark.parametrize("kind", ["head", "channel"])
def test_a_huge_decay_does_not_blur_the_small_ones_next_to_it(backend, kind):
    """In float32 a running sum at -10,000 has steps of 0.001: differences of it would lose the -0.001 decays."""
    arrays = case(48, kind, low=-0.002)
    arrays["decay"][:, 20] = -1e4
    check(backend, bind(linear_attention, chunk=64), loop, arrays, modes=("auto",))


@pytest.mark.parametrize("dtype, eps", [("float16", 2.0 ** -10), ("bfloat16", 2.0 ** -7)])
def test_half_precision_is_float32_inside(backend, dtype, eps):
    rounded = {n: em.tensor(a.astype("float32")).astype(dtype) for n, a in case(33, "channel").items()}
    o, state = linear_attention(**rounded, chunk=8)
    assert str(o.dtype) == dtype and str(state.dtype) == "float32"
    want, last = loop(**{n: torch.tensor(t.astype("float32").numpy()) for n, t in rounded.items()})
    near(o.astype("float32"), want.numpy(), eps, "o")
    near(state, last.numpy(), 1e-5, "state")


@pytest.mark.parametrize("kind", [None, "head", "channel"])
def test_the_state_continues(backend, kind):
    a = {n: em.tensor(x.astype("float32")) for n, x in case(23, kind).items()}
    whole, last = linear_attention(**a, chunk=8)
    parts, state = [], a["initial"]
    for start, stop in ((0, 9), (9, 10), (10, 11), (11, 23)):
        piece = {n: x[:, start:stop] for n, x in a.items() if n != "initial"}
        o, state = linear_attention(**piece, initial=state, chunk=8)
        parts.append(o)
    near(em.ops.concat(parts, axis=1), whole.numpy(), 1e-5, "o")
    near(state, last.numpy(), 1e-5, "state")


@pytest.mark.parametrize("change, says", [
    (dict(v=(2, 0, 2, 4)), "v of shape"), (dict(k=(2, 9, 3, 3)), "k of shape"), (dict(q=(2, 9, 2, 4)), "q of k's shape"),
    (dict(decay=(2, 9, 2)), "decay of shape"), (dict(decay=(2, 9, 2, 2)), "decay of shape"),
    (dict(initial=(2, 2, 3, 3)), "initial of shape"), (dict(reset=(9, 2)), "reset of shape")])
def test_misuse_is_told(change, says):
    with em.using("numpy"):
        arrays = {n: em.tensor(a) for n, a in case(9).items()}
        with pytest.raises(ShapeError, match=f"linear_attention: expected {says}"):
            linear_attention(**{**arrays, **{n: em.ops.ones(s) for n, s in change.items()}})
