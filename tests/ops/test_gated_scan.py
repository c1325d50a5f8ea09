"""RNN, LSTM, GRU and sLSTM against plain loops and torch's own modules, values and gradients."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import ops
from ember_ml.errors import ShapeError
from ember_ml.ops.declare import REGISTRY
from ember_ml.ops.recurrence import cells
from ember_ml.ops.recurrence.gated_scan import gated_scan

torch = pytest.importorskip("torch", reason="the oracle of these tests is torch's autograd")
from tests.ops.oracle import check, near  # noqa: E402

RNG = np.random.default_rng(23)


def update(name, z, state):
    """The cells in torch, as their papers write them."""
    sig, tanh = torch.sigmoid, torch.tanh
    if name == "rnn":
        return (tanh(z[0]),)
    if name == "relu":
        return (torch.relu(z[0]),)
    if name == "lstm":
        c = sig(z[1]) * state[1] + sig(z[0]) * tanh(z[2])
        return sig(z[3]) * tanh(c), c
    if name == "gru":
        n = tanh(z[3] + sig(z[0]) * z[2])
        return ((1 - sig(z[1])) * n + sig(z[1]) * state[0],)
    _, c, n, m = state
    kept = m + torch.nn.functional.logsigmoid(z[1])
    now = torch.where(n == 0, z[0], torch.maximum(z[0], kept))
    f, i = torch.minimum(torch.exp(kept - now), torch.ones(())), torch.exp(z[0] - now)
    c, n = f * c + i * tanh(z[2]), f * n + i
    return sig(z[3]) * c / n, c, n, now


CELLS = {"rnn": cells.RNN_TANH, "relu": cells.RNN_RELU, "lstm": cells.LSTM, "gru": cells.GRU, "slstm": cells.SLSTM}


def loop(name):
    cell = CELLS[name]

    def run(x, R, **state):
        heads, dh, _ = R.shape
        B, L, _ = x.shape
        parts = tuple(state.values()) or tuple(torch.zeros(B, heads * dh, dtype=x.dtype) for _ in range(cell.states))
        ys = []
        for t in range(L):
            r = torch.einsum("bhi,hij->bhj", parts[0].reshape(B, heads, dh), R)
            r = r.reshape(B, heads, cell.recurrent, dh).transpose(1, 2).reshape(B, cell.recurrent, heads * dh)
            z = x[:, t].reshape(B, cell.gates, heads * dh)
            z = torch.cat([z[:, :cell.recurrent] + r, z[:, cell.recurrent:]], 1)
            parts = update(name, z.unbind(1), parts)
            ys.append(parts[0])
        return torch.stack(ys, 1), *parts
    return run


def ours(name, chunk=64):
    def run(x, R, **state):
        y, parts = gated_scan(CELLS[name], x, R, tuple(state.values()) or None, chunk=chunk)
        return y, *parts
    return run


def case(name, length, heads=1, dh=4, batch=2, state=True):
    cell, D = CELLS[name], heads * dh
    arrays = {"x": RNG.standard_normal((batch, length, cell.gates * D)),
              "R": RNG.standard_normal((heads, dh, cell.recurrent * dh)) / np.sqrt(dh)}
    if state:
        for i in range(cell.states):
            arrays[f"s{i}"] = RNG.uniform(0.5, 1.5, (batch, D))
    return arrays


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("length, chunk, heads", [(1, 64, 1), (9, 1, 1), (9, 4, 2), (9, 9, 1), (9, 64, 3)])
def test_equals_the_loop(backend, name, length, chunk, heads):
    check(backend, ours(name, chunk), loop(name), case(name, length, heads), modes=("auto",))


@pytest.mark.parametrize("name", CELLS)
def test_the_tape_and_no_initial_state(backend, name):
    check(backend, ours(name, 4), loop(name), case(name, 7, state=False), modes=("auto", "tape"))


@pytest.mark.parametrize("name", ["lstm", "slstm"])
def test_compiled_is_eager_on_mlx(name):
    pytest.importorskip("mlx.core")
    with em.using("mlx"):
        check("mlx", ours(name, 4), loop(name), case(name, 9), modes=("auto",), compiled=True)


@pytest.mark.parametrize("mode", ["auto", "tape"])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_second_order(backend, name, mode):
    """The slope of the gradient along a direction, against torch's double backward of the loop."""
    arrays = case(name, 7)
    along = {n: RNG.standard_normal(a.shape) for n, a in arrays.items()}
    leaves = {n: torch.tensor(a, requires_grad=True) for n, a in arrays.items()}
    first = torch.autograd.grad(loop(name)(**leaves)[0].pow(3).sum(), list(leaves.values()), create_graph=True)
    want = torch.autograd.grad(sum((g * torch.tensor(along[n])).sum() for n, g in zip(leaves, first)), list(leaves.values()))
    dtype = "float32" if backend == "mlx" else "float64"
    given, directions = ([em.tensor(x.astype(dtype)) for x in of.values()] for of in (arrays, along))

    def slope(*values):
        grads = em.grad(lambda *v: (ours(name, 4)(**dict(zip(arrays, v)))[0] ** 3).sum(), tuple(range(len(values))), mode=mode)(*values)
        return ops.concat([(g * d).sum().reshape((1,)) for g, d in zip(grads, directions)]).sum()

    for n, got, expected in zip(arrays, em.grad(slope, tuple(range(len(given))), mode=mode)(*given), want):
        near(got, expected.numpy(), 1e-4 if backend == "mlx" else 1e-9, n)


def test_the_rule_is_the_slope_of_the_loop():
    """Central differences, along one direction through all inputs at once."""
    arrays = case("lstm", 11, heads=2)
    cot = RNG.standard_normal((2, 11, 8))

    def value(a):
        return (loop("lstm")(**{n: torch.tensor(x) for n, x in a.items()})[0].numpy() * cot).sum()

    with em.using("numpy"):
        grads = em.grad(lambda *v: (ours("lstm", 4)(**dict(zip(arrays, v)))[0] * em.tensor(cot)).sum(), tuple(range(len(arrays))))(
            *[em.tensor(a) for a in arrays.values()])
    along, h = {n: RNG.standard_normal(a.shape) for n, a in arrays.items()}, 1e-6
    up, down = (value({n: a + s * h * along[n] for n, a in arrays.items()}) for s in (1, -1))
    assert sum((g.numpy() * d).sum() for g, d in zip(grads, along.values())) == pytest.approx((up - down) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("dtype, eps", [("float16", 2.0 ** -9), ("bfloat16", 2.0 ** -6)])
def test_half_precision_keeps_its_state_in_float32(backend, dtype, eps):
    rounded = {n: em.tensor(a.astype("float32")).astype(dtype) for n, a in case("lstm", 50).items()}
    y, h, c = ours("lstm")(**rounded)
    assert str(y.dtype) == dtype and str(h.dtype) == str(c.dtype) == "float32"
    want = loop("lstm")(**{n: torch.tensor(t.astype("float32").numpy()) for n, t in rounded.items()})
    near(y.astype("float32"), want[0].numpy(), eps, "y")
    near(c, want[2].numpy(), 1e-5, "c")


LAYERS = {"rnn": (torch.nn.RNN, 1), "lstm": (torch.nn.LSTM, 4), "gru": (torch.nn.GRU, 3)}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_whole_layers_equal_torch_s_modules(backend, name, bias):
    """Both ways: torch's kernels where the engine has them, the walk over time elsewhere and on the tape."""
    module, gates = LAYERS[name]
    arrays = {"x": RNG.standard_normal((2, 9, 3)), "weight_ih": RNG.standard_normal((gates * 4, 3)) / 2,
              "weight_hh": RNG.standard_normal((gates * 4, 4)) / 2, "h": RNG.standard_normal((2, 4))}
    if name == "lstm":
        arrays["c"] = RNG.standard_normal((2, 4))
    if bias:
        arrays["bias"] = RNG.standard_normal(gates * 4)
        if name == "gru":
            arrays["bias_inner"] = RNG.standard_normal(4)

    def theirs(x, weight_ih, weight_hh, h, c=None, bias=None, bias_inner=None):
        layer = module(3, 4, batch_first=True, bias=bias is not None, dtype=torch.float64)
        given = {"weight_ih_l0": weight_ih, "weight_hh_l0": weight_hh}
        if bias is not None:
            none = torch.zeros_like(bias)
            given |= {"bias_ih_l0": bias, "bias_hh_l0": none if bias_inner is None else torch.cat([none[:8], bias_inner])}
        state = h[None] if c is None else (h[None], c[None])
        y, after = torch.func.functional_call(layer, given, (x, state))
        return y, *[s[0] for s in (after if c is not None else [after])]

    fn = getattr(ops, name)
    check(backend, lambda **kw: fn(**kw), theirs, arrays)


def test_rnn_with_relu(backend):
    arrays = {"x": RNG.standard_normal((2, 9, 3)), "weight_ih": RNG.standard_normal((4, 3)), "weight_hh": RNG.standard_normal((4, 4)) / 2}

    def plain(x, weight_ih, weight_hh):
        h, ys = torch.zeros(2, 4, dtype=x.dtype), []
        for t in range(9):
            h = torch.relu(x[:, t] @ weight_ih.T + h @ weight_hh.T)
            ys.append(h)
        return torch.stack(ys, 1), h

    check(backend, lambda **kw: ops.rnn(**kw, relu=True), plain, arrays)


@pytest.mark.parametrize("name", ["rnn_rows", "lstm_rows", "gru_rows"])
def test_torch_takes_its_own(name):
    assert REGISTRY[name].path(em.backend.get("torch")) == "native"


def test_memory_grows_by_the_states_alone():
    """MLX: backward over 512 steps; all gates' derivatives together would be 12 times the width."""
    mx = pytest.importorskip("mlx.core")
    with em.using("mlx"):
        arrays = [em.tensor(a.astype("float32")) for a in case("lstm", 512, dh=64, state=False).values()]

        def loss(x, R):
            return (gated_scan(cells.LSTM, x, R, chunk=32)[0] ** 2).sum()

        mx.eval([a.data for a in arrays])
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval([g.data for g in em.grad(loss, (0, 1))(*arrays)])
        io = 4 * 2 * 512 * 64 * (4 + 4 + 1 + 1)              # x, dx, y, dy
        assert mx.get_peak_memory() - before < 2 * io


@pytest.mark.parametrize("change, says", [
    (dict(x=(2, 5, 15)), "x of shape"), (dict(x=(2, 0, 16)), "x of shape"), (dict(R=(4, 16)), "R of shape"), (dict(R=(1, 4, 12)), "R of shape"),
    (dict(s1=(2, 3)), "initial to be the state")])
def test_misuse_is_told(change, says):
    with em.using("numpy"):
        arrays = {n: em.tensor(a) for n, a in case("lstm", 5).items()}
        with pytest.raises(ShapeError, match=f"lstm: expected (an )?{says}"):
            ours("lstm")(**{**arrays, **{n: ops.ones(s) for n, s in change.items()}})


@pytest.mark.parametrize("change, says", [(dict(weight_ih=(16, 2)), "weight_ih"), (dict(weight_hh=(4, 4)), "weight_hh"),
                                          (dict(bias=(4,)), "bias"), (dict(h=(4,)), "initial state 0"), (dict(x=(5, 3)), "x of shape")])
def test_misuse_of_a_whole_layer_is_told(change, says):
    shapes = {"x": (2, 5, 3), "weight_ih": (16, 3), "weight_hh": (16, 4), **change}
    with em.using("numpy"), pytest.raises(ShapeError, match=f"lstm: expected {says}"):
        ops.lstm(**{n: ops.ones(s) for n, s in shapes.items()})
