"""Decoding a long convolution by tiles: exact whatever the stretches and however long the stream, and its work, counted where it is done."""

from math import log2

import numpy as np
import pytest

import ember_ml as em
from ember_ml.nn.layers.sequence_mixing import online_conv
from ember_ml.registry import layers
from ember_ml.weights import load, save_tree
from tests.nn import _mixers
from tests.nn._help import close, get, numbers, put, same_trees
from tests.nn._mixers import every_precision

LENGTH = 45
ROWS = {"hyena": ("hyena", dict(d_input=3, l_max=LENGTH, order=3, filter={"width": 4})),
        "heads": ("hyena", dict(d_input=4, l_max=LENGTH, head_dim=2, filter={"width": 4})),
        "rational": ("hyena", dict(d_input=2, l_max=LENGTH, filter_kind="rational")),
        "long_conv": ("long_conv", dict(d_input=2, l_max=LENGTH, copies=2))}
every_row = pytest.mark.parametrize("row", ROWS)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 4: 45 taps make a period of 64 with tiles of 4, 8, 16, 32 and 64."""
    monkeypatch.setattr(online_conv, "BLOCK", 4)


def build(row, engine, dtype="float32"):
    return _mixers.build(*ROWS[row], engine, dtype)


def read(layer, x, state, lengths):
    """The outputs of x (an array) in stretches of these lengths, 0 for one `step`; and the state after."""
    out, at, like = [], 0, layer.D
    for length in lengths:
        part = em.tensor(x[:, at:at + max(length, 1)], dtype=like.dtype, device=like.device)
        y, state = layer(part, state) if length else layer.step(part[:, 0], state)
        out.append(get(y) if length else get(y)[:, None])
        at += max(length, 1)
    assert at == x.shape[1]
    return np.concatenate(out, 1), state


def start(layer, batch, dtype="float32"):
    with em.using(layer.D.device):
        return layer.initial_state(batch, dtype)


STEPS = [0] * LENGTH
STRETCHES = [STEPS, [LENGTH], [15, *[0] * 30], [16, 0, 0, 2, 11, 1, 12, 0], [7, 32, 0, 5], [1, 4, 8, 0, 0, 0, 16, 8, 3, 2]]


@every_precision
@every_row
def test_any_stretches_are_the_whole(row, engine, dtype, tolerance):
    layer, x = build(row, engine, dtype), numbers(0, 2, LENGTH, ROWS[row][1]["d_input"])
    whole = get(layer(put(x, dtype, engine))[0])
    states = []
    for lengths in STRETCHES:
        y, state = read(layer, x, start(layer, 2, dtype), lengths)
        close(y, whole, tolerance, str(lengths))
        states.append(state)
    for state in states[1:]:
        same_trees(state, states[0], tolerance, "state")


def convolved(layer, x) -> np.ndarray:
    """What a long_conv of this filter gives for a stream of any length, by NumPy in float64: taps end at l_max."""
    k, D, count = get(layer.filters()), get(layer.D), x.shape[1]
    z = np.stack([[np.convolve(row[:, d], k[d])[:count] + D[d] * row[:, d] for d in range(len(k))] for row in x]).swapaxes(1, 2)
    a, b = np.split(z @ get(layer.out_proj.weight).T + get(layer.out_proj.bias), 2, axis=-1)
    return a / (1 + np.exp(-b))


@pytest.mark.parametrize("l_max", [1, 2, 4, 5, 8, 9, 16, 21])
def test_a_stream_may_be_longer_than_the_filter(l_max, backend):
    """Over several periods; what is further back than l_max has no effect."""
    layer = layers.instantiate("long_conv", key=em.random.key(2), d_input=2, l_max=l_max, activation="identity")
    x = numbers(1, 2, 83, 2)
    want, states = convolved(layer, x), []
    for lengths in ([0] * 83, [83], [70, 1, 12], [3, 0, 29, 33, 0, 16]):
        y, state = read(layer, x, start(layer, 2), lengths)
        close(y, want, 1e-4, str(lengths))
        states.append(state)
    for state in states[1:]:
        same_trees(state, states[0], 1e-4, "state")


@every_row
def test_streams_of_one_layer_share_what_its_filters_need(row, backend):
    """Spectra are not made again as two streams take turns; a change of the parameters touches new streams alone."""
    layer, x = build(row, backend), numbers(0, 2, LENGTH, ROWS[row][1]["d_input"])
    whole = get(layer(put(x))[0])
    a, b = start(layer, 1), start(layer, 1)
    assert a["filters"].data is b["filters"].data and layer._decoding(a) == layer._decoding(b)
    for t in range(12):
        y, a = layer.step(put(x[:1, t]), a)
        z, b = layer.step(put(x[1:, t]), b)
        close(np.concatenate([get(y), get(z)]), whole[:, t], 1e-4, f"step {t}")
    name = "kernel" if row == "long_conv" else "filter.b" if row == "rational" else "filter.out.weight"
    layer.update({name: layer.parameters()[name] * 2.0})
    c = start(layer, 1)
    assert np.abs(get(c["filters"]) - get(a["filters"])).max() > 1e-3
    close(layer.step(put(x[:1, 12]), a)[0], whole[:1, 12], 1e-4)


def test_the_count_of_positions_may_wrap(backend):
    """int32 ends at 2^31 - 1: a stream at position 62 of its period of 64, and one that is 2^31 - 64 positions further."""
    layer, x = build("long_conv", backend), numbers(0, 1, 80, 2)
    _, state = read(layer, x[:, :62], start(layer, 1), [62])
    later = {**state, "at": em.tensor(2**31 - 2, dtype="int32", device=layer.D.device)}
    for lengths in ([0] * 18, [18], [1, 1, 9, 7]):
        close(read(layer, x[:, 62:], later, lengths)[0], read(layer, x[:, 62:], state, lengths)[0], 1e-6, str(lengths))


@pytest.mark.parametrize("first, second", [("numpy", "torch"), ("torch", "mlx"), ("mlx", "numpy")])
@every_row
def test_a_state_of_many_levels_continues_on_another_engine(row, first, second, tmp_path, monkeypatch):
    """Through a file, also where another block size was chosen meanwhile; both branches of it."""
    a, b = build(row, first), build(row, second)
    x = numbers(0, 2, LENGTH, ROWS[row][1]["d_input"])
    whole = get(b(put(x, engine=second))[0])
    _, state = read(a, x[:, :27], start(a, 2), [20, *[0] * 7])
    save_tree(tmp_path / "state.safetensors", state)
    tensors, _, _ = load(tmp_path / "state.safetensors", device=second)
    structure = em.tree.flatten(start(b, 2))[1]
    monkeypatch.setattr(online_conv, "BLOCK", 16)
    state = em.tree.unflatten(structure, [tensors[name] for name in em.tree.named(state)])
    before = [t.tolist() for t in em.tree.tensors(state)]
    for lengths in ([0] * 18, [18]):
        close(read(b, x[:, 27:], state, lengths)[0], whole[:, 27:], 1e-4, str(lengths))
    assert [t.tolist() for t in em.tree.tensors(state)] == before


@every_row
def test_gradients_of_stretches_are_those_of_the_whole(row):
    layer, x = build(row, "numpy", "float64"), put(numbers(0, 2, LENGTH, ROWS[row][1]["d_input"]), "float64", "numpy")
    w = put(numbers(1, *x.shape), "float64", "numpy")

    def loss(params, x, lengths):
        with layer.using(params):
            if lengths is None:
                return (layer(x)[0] * w).sum()
            state, at, parts = start(layer, 2, "float64"), 0, []
            for length in lengths:
                y, state = layer(x[:, at:at + length], state)
                parts.append((y * w[:, at:at + length]).sum())
                at += length
            return sum(parts[1:], parts[0])

    whole, parts = (em.grad(lambda p, x: loss(p, x, lengths), (0, 1))(layer.parameters(), x) for lengths in (None, [13, 1, 21, 10]))
    same_trees(parts, whole, 1e-9)


def test_a_compiled_step_is_the_eager_one(monkeypatch):
    """On MLX, where a compiled function knows no value of the position: over two periods and a half."""
    monkeypatch.setattr(online_conv, "BLOCK", 2)
    monkeypatch.setitem(ROWS, "long_conv", ("long_conv", dict(d_input=2, l_max=7)))
    layer, x = build("long_conv", "mlx"), numbers(1, 1, 19, 2)
    want, _ = read(layer, x, start(layer, 1), [0] * 19)
    step, state = em.compile(layer.step), start(layer, 1)
    for t in range(19):
        y, state = step(put(x[:, t], engine="mlx"), state)
        close(y, want[:, t], 1e-4, f"step {t}")
    y, _ = em.compile(layer.forward)(put(x[:, :5], engine="mlx"), start(layer, 1))
    close(y, want[:, :5], 1e-4)


def count_work(monkeypatch, l_max, positions):
    """(multiply-adds of one channel, the tiles' sizes) position by position, counted in the calls that do them.

    A real FFT of n points counts as a complex one of n / 2, 1.25 n log2(n / 2), and 2 n to take it apart; a complex product as 4.
    """
    work, tiles = [0.0] * positions, [0] * positions
    at = 0
    total, rfft, irfft = online_conv.total, online_conv.rfft, online_conv.irfft

    def transform(fn):
        def counted(x, n):
            work[at] += 1.25 * n * log2(n / 2) + 2 * n + (4 * (n // 2) if fn is irfft else 0)
            tiles[at] += n // 2 if fn is irfft else 0
            return fn(x, n=n)
        return counted

    def summed(x, **kw):
        work[at] += x.shape[-1]
        return total(x, **kw)

    monkeypatch.setattr(online_conv, "total", summed)
    monkeypatch.setattr(online_conv, "rfft", transform(rfft))
    monkeypatch.setattr(online_conv, "irfft", transform(irfft))
    with em.using("numpy"):
        layer = layers.instantiate("long_conv", key=em.random.key(2), d_input=1, l_max=l_max)
        state, x = layer.initial_state(1), put(numbers(0, 1, 1))
        for at in range(positions):
            _, state = layer.step(x, state)
    return work, tiles


def epoched(l_max: int) -> float:
    """Multiply-adds a position of FutureFill (Agarwal et al. 2024, algorithm 2) at its best epoch: E products, and once an epoch all of the
    past by a real FFT and its inverse of l_max + E points, counted as above."""
    def at(epoch):
        n = l_max + epoch
        return epoch + (2 * (1.25 * n * log2(n / 2) + 2 * n) + 2 * n) / epoch
    return min(at(1 << i) for i in range(1, l_max.bit_length()))


def test_the_work_of_every_position(monkeypatch):
    """The tile at t is the largest power of two blocks that divides t; the sum is what `multiply_adds` says, the spectra apart."""
    monkeypatch.setattr(online_conv, "BLOCK", 16)
    work, tiles = count_work(monkeypatch, 200, 512)
    assert tiles == [0 if t % 16 else min(t & -t, 256) for t in range(1, 513)]
    steady = work[256:]                                    # of the second period: the spectra of its smaller tiles are at hand
    spectra = sum(1.25 * 2 * size * log2(size) + 4 * size for size in (128, 256))
    assert sum(steady) - spectra == pytest.approx(256 * online_conv.multiply_adds(200))


@pytest.mark.parametrize("l_max, of_cache, of_epochs", [(4096, 0.12, 0.5), (32768, 0.02, 0.2), (1 << 20, 0.001, 0.05)])
def test_the_count_is_far_below_that_of_a_cache_and_of_epochs(l_max, of_cache, of_epochs, monkeypatch):
    monkeypatch.undo()                                     # the blocks that decoding has
    count = online_conv.multiply_adds(l_max)
    assert count < of_cache * l_max and count < of_epochs * epoched(l_max)


def test_the_count_grows_as_the_square_of_the_logarithm(monkeypatch):
    monkeypatch.undo()
    counts = [online_conv.multiply_adds(1 << i) for i in range(8, 25)]
    second = np.diff(counts, 2)
    np.testing.assert_allclose(second, second[0], rtol=1e-6)
    assert second[0] > 0


def test_the_state_grows_with_the_stream(monkeypatch):
    layer = build("long_conv", "numpy")
    channels = layer.D.shape[0]

    def size(length):
        _, state = layer(put(numbers(0, 1, length, 2), engine="numpy"), start(layer, 1))
        return sum(t.size for t in em.tree.tensors(state["long"])) // channels

    assert [size(n) for n in (1, 3, 4, 7, 8, 31, 32, 45)] == [8, 8, 12, 12, 20, 36, 68, 68]
