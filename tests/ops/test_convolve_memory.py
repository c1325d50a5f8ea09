"""Memory of the long convolution on CPUs: what lay in it before a call, and what other threads do meanwhile, changes no bit."""

import importlib
import sys
from threading import Thread

import numpy as np
import pytest

import ember_ml as em
from tests.ops.small_blocks import force_small_blocks

RNG = np.random.default_rng(7)

OPTIONS = {"plain": (), "before": ("v",), "after": ("q", "D", "gelu"), "both ways": ("k_reverse", "D"),
           "all": ("D", "v", "q", "k_reverse", "dropout_mask", "gelu", "heads")}


def case(options, length, taps):
    """(arrays by name, the output's gradient, static arguments)"""
    head_dim = 2 if "heads" in options else 1
    rows, filters = (3, 4, length), 4 // head_dim
    shapes = {"u": rows, "k": (filters, taps), "D": (filters,), "v": rows, "q": rows, "k_reverse": (filters, 4), "dropout_mask": (3, filters)}
    arrays = {n: RNG.standard_normal(s).astype(np.float32) for n, s in shapes.items() if n in ("u", "k", *options)}
    return arrays, RNG.standard_normal(rows).astype(np.float32), {"gelu": "gelu" in options, "head_dim": head_dim}


def results(arrays, g, static):
    """The bytes of the output and of all gradients on the current engine, by name."""
    t, c, names = {n: em.tensor(a) for n, a in arrays.items()}, em.tensor(g), [n for n in arrays if n != "dropout_mask"]

    def convolve(*values):
        given = {**t, **dict(zip(names, values))}
        return em.ops.fftconv(given.pop("u"), given.pop("k"), given.pop("D", None), **given, **static)
    given = [t[n] for n in names]
    grads = em.grad(lambda *values: (convolve(*values) * c).sum(), tuple(range(len(names))))(*given)
    return {n: x.numpy().copy() for n, x in zip(["y", *names], [convolve(*given), *grads])}


def assert_same(got, want):
    for n, a in want.items():
        assert np.isfinite(a).all() and got[n].tobytes() == a.tobytes(), n


@pytest.fixture(params=["numpy", "torch:cpu", "mlx"])
def blockwise(request, monkeypatch):
    """An engine with its ways for long rows forced upon short ones: a few rows a block, on three threads."""
    engine = request.param.partition(":")[0]
    pytest.importorskip({"mlx": "mlx.core"}.get(engine, engine))
    force_small_blocks(monkeypatch, request.param, points=60)
    with em.using(request.param):
        yield request.param


def fill_new_memory(monkeypatch, engine, value):
    """All that the engine's blocks are given to write holds `value` first; the list counts how often."""
    filled = []

    def dirty(array):
        if array.dtype.kind in "fcV" if isinstance(array, np.ndarray) else array.is_floating_point() or array.is_complex():
            array[...] = value
            filled.append(array.shape)
        return array
    if engine != "torch:cpu":
        blocks, empty = importlib.import_module("ember_ml.backend.numpy.fftconv"), np.empty

        def new(*args, **kw):
            return dirty(empty(*args, **kw))
        monkeypatch.setattr(np, "empty", new)
        result = blocks._Call.result

        def dirty_result(call, dtype):
            y, by_head = result(call, dtype)
            return dirty(y), by_head
        monkeypatch.setattr(blocks._Call, "result", dirty_result)
        return filled
    import torch

    from ember_ml.backend.torch.cpu import mkl
    empty, memory = torch.empty, mkl.memory

    def new(*args, **kw):
        return dirty(empty(*args, **kw))

    def dirty_memory(*args):
        kept = memory(*args)
        dirty(kept._real)
        return kept
    monkeypatch.setattr(torch, "empty", new)
    monkeypatch.setattr(mkl, "memory", dirty_memory)
    return filled


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("length, taps", [(18, 18), (7, 9)])
def test_what_lay_in_the_memory_does_not_matter(blockwise, options, length, taps):
    """Rows that end before their block does, blocks that are not full, what wraps round: everything read was written before."""
    arguments = case(OPTIONS[options], length, taps)
    want = results(*arguments)
    for value in (np.nan, np.inf):
        with pytest.MonkeyPatch.context() as patch:
            filled = fill_new_memory(patch, blockwise, value)
            assert_same(results(*arguments), want)
        assert filled


@pytest.mark.parametrize("options", ["after", "all"])
def test_a_row_that_is_not_finite_leaves_nothing_to_the_others(blockwise, options):
    """Of the first sequence, whose memory the next blocks take: outputs and gradients of the other sequences keep their bits."""
    arrays, g, static = case(OPTIONS[options], 18, 18)
    want = results(arrays, g, static)
    arrays["u"][0] = np.nan
    got = results(arrays, g, static)
    assert np.isnan(got["y"][0]).any()
    assert_same({n: got[n][1:] for n in ("y", "u", "q")}, {n: want[n][1:] for n in ("y", "u", "q")})


def test_threads_do_not_share_memory(blockwise, monkeypatch):
    """Four threads that convolve other shapes in turn, some of nothing finite, get the bits of one thread alone."""
    cases = [case(OPTIONS[o], *sizes) for o, sizes in zip(OPTIONS, [(11, 8), (18, 18), (34, 34), (34, 5), (18, 18)])]
    want, faults, interval = [results(*c) for c in cases], [], sys.getswitchinterval()

    def work(first):
        try:
            with em.using(blockwise):
                for i in range(first, first + len(cases)):
                    arrays, g, static = cases[i % len(cases)]
                    if i % 2:
                        results({n: np.full_like(a, np.nan) for n, a in arrays.items()}, g, static)
                    assert_same(results(arrays, g, static), want[i % len(cases)])
        except BaseException as e:                         # told in the test's own thread
            faults.append(e)
    sys.setswitchinterval(1e-5)
    try:
        threads = [Thread(target=work, args=(first,)) for first in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(interval)
    assert not faults, faults
