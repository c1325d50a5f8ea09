"""The delta rule with any decay against the plain loop, and where it is delicate: equal keys, resets, large corrections."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ShapeError
from ember_ml.ops.recurrence import delta_rule, gated_delta_rule
from ember_ml.ops.recurrence.delta_rule import unit_inverse
from ember_ml.ops.recurrence.linear_attention import sizes

torch = pytest.importorskip("torch", reason="the oracle of these tests is torch's autograd")
from tests.ops.oracle import check, check_slopes, mlx_peak, near  # noqa: E402

RNG = np.random.default_rng(17)


def loop(q, k, v, a, b, decay=None, initial=None, reset=None):
    B, L, H, dv = v.shape
    q, k, a, b = (x.repeat_interleave(H // x.shape[2], 2) for x in (q, k, a, b))
    S = torch.zeros(B, H, k.shape[-1], dv, dtype=v.dtype) if initial is None else initial
    decay = torch.exp(torch.zeros(1, 1, 1, 1, dtype=v.dtype) if decay is None else decay).expand(B, L, H, -1)
    out = []
    for t in range(L):
        S = S if reset is None else S * (~reset[:, t]).to(v.dtype).reshape(B, 1, 1, 1)
        u = torch.einsum("bhkv,bhk->bhv", S, a[:, t])
        S = decay[:, t, :, :, None] * S + b[:, t, :, :, None] * u[:, :, None] + k[:, t, :, :, None] * v[:, t, :, None]
        out.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
    return torch.stack(out, 1), S


def case(length, kind=None, heads=2, shared=1, dk=3, dv=4, batch=2):
    def normal():
        return RNG.standard_normal((batch, length, heads // shared, dk))

    direction = normal()
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    arrays = {"q": normal(), "k": normal(), "v": RNG.standard_normal((batch, length, heads, dv)), "a": direction,
              "b": -direction * RNG.uniform(0, 1, direction.shape), "initial": RNG.standard_normal((batch, heads, dk, dv))}
    shapes = {"head": (batch, length, heads, 1), "channel": (batch, length, heads, dk)}
    if kind:
        arrays["decay"] = -RNG.uniform(0.0, 1.0, shapes[kind])
    return arrays


def bind(fn, **options):
    return lambda **kw: fn(**kw, **options)


@pytest.mark.parametrize("kind", [None, "head", "channel"])
@pytest.mark.parametrize("length, chunk", [(1, 32), (5, 1), (21, 3), (21, 8), (37, 16), (37, 64)])
def test_equals_the_loop(backend, kind, length, chunk):
    check(backend, bind(delta_rule, chunk=chunk), loop, case(length, kind), modes=("auto",))


@pytest.mark.parametrize("kind", [None, "channel"])
def test_the_tape_and_the_compiled_gradient_agree(backend, kind):
    check(backend, bind(delta_rule, chunk=8), loop, case(21, kind), modes=("tape",))
    if backend == "mlx":                                 # torch takes tens of seconds to compile one
        check(backend, bind(delta_rule, chunk=8), loop, case(13, kind), modes=("auto",), compiled=True)


@pytest.mark.parametrize("kind", [None, "head"])
def test_shared_heads_and_resets(backend, kind):
    arrays = case(27, kind, heads=4, shared=2)
    arrays["reset"] = RNG.random((2, 27)) < 0.2
    check(backend, bind(delta_rule, chunk=8), loop, arrays, [n for n in arrays if n != "reset"], modes=("auto",))


@pytest.mark.parametrize("kind", ["head", "channel"])
@pytest.mark.parametrize("decay", [-np.inf, -1e-7, -1e4])
def test_extreme_decays(backend, kind, decay):
    arrays = case(40, kind)
    arrays["decay"] = np.where(RNG.random(arrays["decay"].shape) < 0.3, decay, arrays["decay"] * 0.01)
    watched = [n for n in arrays if n != "decay" or np.isfinite(decay)]
    check(backend, bind(delta_rule, chunk=16), loop, arrays, watched, modes=("auto",), slack=2.0)


def test_equal_keys_overwrite_each_other(backend):
    """All keys equal and beta = 1: each step replaces the value. A power series of the chunk's matrix would lose its digits."""
    arrays = case(64)
    arrays["a"][:] = arrays["a"][:, :1]
    arrays["k"], arrays["b"] = arrays["a"].copy(), -arrays["a"]
    check(backend, bind(delta_rule, chunk=64), loop, arrays, modes=("auto",))


@pytest.mark.parametrize("steps", [1, 2, 8, 64])
def test_unit_inverse(backend, steps):
    a = np.tril(RNG.uniform(-1, 0, (3, steps, steps)), -1)
    want = np.linalg.inv(np.eye(steps) - a)
    near(unit_inverse(em.tensor(a.astype("float32"))), want, 1e-5, "inverse")


@pytest.mark.parametrize("kind", [None, "head", "channel"])
def test_many_segments_are_one(backend, kind, monkeypatch):
    """Segments of two chunks, so that states and their gradients cross from one to the next."""
    monkeypatch.setitem(sizes.__globals__, "WORKSPACE", 2 * 2 * 2 * 4 * 4)
    check(backend, bind(delta_rule, chunk=4), loop, case(43, kind))


@pytest.mark.parametrize("kind", [None, "channel"])
def test_gradients_are_slopes(kind):
    arrays = case(11, kind, heads=4, shared=2, batch=1)
    if kind:
        arrays["decay"] -= 0.01                          # a decay is at most 0 on both sides of it
    check_slopes(bind(delta_rule, chunk=8), arrays)


def gated_loop(q, k, v, beta, decay=None, initial=None, reset=None):
    B, L, H, dv = v.shape
    q, k = (x.repeat_interleave(H // x.shape[2], 2) for x in (q, k))
    S = torch.zeros(B, H, k.shape[-1], dv, dtype=v.dtype) if initial is None else initial
    eye, out = torch.eye(k.shape[-1], dtype=k.dtype), []
    for t in range(L):
        S = S if reset is None else S * (~reset[:, t]).to(v.dtype).reshape(B, 1, 1, 1)
        kt, bt = k[:, t], beta[:, t, :, None, None]
        keep = eye - bt * kt[..., None] * kt[..., None, :]
        keep = keep if decay is None else torch.exp(decay[:, t])[..., None, None] * keep
        S = keep @ S + bt * kt[..., None] * v[:, t, :, None]
        out.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
    return torch.stack(out, 1), S


def gated_case(length, decay=True, **sizes):
    arrays = case(length, **sizes)
    arrays = {n: arrays[n] for n in ("q", "v", "initial")} | {"k": arrays["a"]}
    arrays["beta"] = RNG.uniform(0, 1, arrays["v"].shape[:3])
    return arrays | ({"decay": -RNG.uniform(0.01, 1, arrays["v"].shape[:3])} if decay else {})


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("length, chunk", [(1, 32), (5, 1), (21, 8), (37, 64)])
def test_gated_delta_rule_is_its_formula(backend, length, chunk, decay):
    check(backend, bind(gated_delta_rule, chunk=chunk), gated_loop, gated_case(length, decay), modes=("auto",))


def test_gated_delta_rule_over_segments_with_shared_heads_and_resets(backend, monkeypatch):
    monkeypatch.setitem(sizes.__globals__, "WORKSPACE", 2 * 4 * 2 * 4 * 4)
    arrays = gated_case(43, heads=4, shared=2)
    arrays["reset"] = RNG.random((2, 43)) < 0.2
    check(backend, bind(gated_delta_rule, chunk=4), gated_loop, arrays, [n for n in arrays if n != "reset"])


@pytest.mark.parametrize("decay", [-np.inf, -1e-7, -1e4])
def test_gated_delta_rule_of_extreme_decays(backend, decay):
    arrays = gated_case(40)
    arrays["decay"] = np.where(RNG.random(arrays["decay"].shape) < 0.3, decay, arrays["decay"] * 0.01)
    watched = [n for n in arrays if n != "decay" or np.isfinite(decay)]
    check(backend, bind(gated_delta_rule, chunk=16), gated_loop, arrays, watched, modes=("auto",), slack=2.0)


def test_gated_delta_rule_of_equal_keys(backend):
    """All keys equal and beta = 1, without decay: the state holds the last value alone."""
    arrays = gated_case(64, decay=False)
    arrays["k"][:], arrays["beta"][:] = arrays["k"][:, :1], 1.0
    check(backend, bind(gated_delta_rule, chunk=64), gated_loop, arrays, modes=("auto",))


def test_gated_delta_rule_compiled_is_eager_on_mlx():
    pytest.importorskip("mlx.core")
    with em.using("mlx"):
        check("mlx", bind(gated_delta_rule, chunk=8), gated_loop, gated_case(13), modes=("auto",), compiled=True)


def test_memory_of_the_gradient_on_mlx():
    """Twice the length: at most 1.5 times the bytes that must be there more."""
    pytest.importorskip("mlx.core")
    (short, io), (long, more) = (mlx_peak(lambda **kw: gated_delta_rule(**kw)[0], gated_case(n, heads=2, dk=32, dv=32))
                                 for n in (4096, 8192))
    assert long - short <= 1.5 * (more - io)


def test_the_state_continues(backend):
    a = {n: em.tensor(x.astype("float32")) for n, x in case(23, "channel").items()}
    whole, last = delta_rule(**a, chunk=8)
    parts, state = [], a["initial"]
    for start, stop in ((0, 9), (9, 10), (10, 11), (11, 23)):
        piece = {n: x[:, start:stop] for n, x in a.items() if n != "initial"}
        o, state = delta_rule(**piece, initial=state, chunk=8)
        parts.append(o)
    near(em.ops.concat(parts, axis=1), whole.numpy(), 1e-5, "o")
    near(state, last.numpy(), 1e-5, "state")


@pytest.mark.parametrize("dtype, eps", [("float16", 2.0 ** -10), ("bfloat16", 2.0 ** -7)])
def test_half_precision_is_float32_inside(backend, dtype, eps):
    rounded = {n: em.tensor(a.astype("float32")).astype(dtype) for n, a in case(33, "head").items()}
    o, state = delta_rule(**rounded, chunk=8)
    assert str(o.dtype) == dtype and str(state.dtype) == "float32"
    want, last = loop(**{n: torch.tensor(t.astype("float32").numpy()) for n, t in rounded.items()})
    near(o.astype("float32"), want.numpy(), eps, "o")
    near(state, last.numpy(), 1e-5, "state")


@pytest.mark.parametrize("change, says", [(dict(a=(2, 9, 2, 4)), "a of k's shape"), (dict(b=(2, 8, 2, 3)), "b of k's shape"),
                                          (dict(decay=(2, 9, 2)), "decay of shape"), (dict(v=(2, 9, 4)), "v of shape")])
def test_misuse_is_told(change, says):
    with em.using("numpy"):
        arrays = {n: em.tensor(a) for n, a in case(9).items()}
        with pytest.raises(ShapeError, match=f"delta_rule: expected {says}"):
            delta_rule(**{**arrays, **{n: em.ops.ones(s) for n, s in change.items()}})
        with pytest.raises(ShapeError, match="expected beta of shape"):
            gated_delta_rule(arrays["q"], arrays["k"], arrays["v"], em.ops.ones((2, 9)))
