"""What every recurrence says to arguments of the wrong kind: integers, arrays of others, nothing, chunks of no steps, half a state."""

import re

import numpy as np
import pytest

import ember_ml as em
from ember_ml import ops
from ember_ml.errors import ShapeError, UnsupportedDtype
from ember_ml.ops.recurrence import cells, gated_scan, over_chunks


def ones(*shape):
    return em.ops.ones(shape)


#: op -> arguments that it takes; the first named one is the sequence
CALLS = {
    "linear_scan": (ops.linear_scan, dict(b=(2, 4, 3), a=(2, 4, 3))),
    "selective_scan": (ops.selective_scan, dict(x=(2, 4, 3), dt=(2, 4, 3), A=(3, 2), B=(2, 4, 2), C=(2, 4, 2))),
    "wkv": (ops.wkv, dict(k=(2, 4, 3), v=(2, 4, 3), w=(3,), u=(3,))),
    "linear_attention": (ops.linear_attention, dict(v=(2, 4, 2, 3), q=(2, 4, 2, 3), k=(2, 4, 2, 3))),
    "delta_rule": (ops.delta_rule, dict(v=(2, 4, 2, 3), q=(2, 4, 2, 3), k=(2, 4, 2, 3), a=(2, 4, 2, 3), b=(2, 4, 2, 3))),
    "gated_delta_rule": (ops.gated_delta_rule, dict(v=(2, 4, 2, 3), q=(2, 4, 2, 3), k=(2, 4, 2, 3), beta=(2, 4, 2))),
    "mlstm": (ops.mlstm, dict(v=(2, 4, 2, 3), q=(2, 4, 2, 3), k=(2, 4, 2, 3), i=(2, 4, 2), f=(2, 4, 2))),
    "slstm": (lambda **kw: gated_scan(cells.SLSTM, **kw), dict(x=(2, 4, 12), R=(1, 3, 12))),
    "rnn": (ops.rnn, dict(x=(2, 4, 3), weight_ih=(5, 3), weight_hh=(5, 5))),
    "lstm": (ops.lstm, dict(x=(2, 4, 3), weight_ih=(20, 3), weight_hh=(20, 5))),
    "gru": (ops.gru, dict(x=(2, 4, 3), weight_ih=(15, 3), weight_hh=(15, 5))),
}


@pytest.fixture(params=CALLS)
def call(request):
    """(name, function, its arguments)."""
    fn, shapes = CALLS[request.param]
    with em.using("numpy"):
        yield request.param, fn, {n: ones(*s) for n, s in shapes.items()}


def test_the_calls_are_right(call):
    name, fn, args = call
    assert all(np.isfinite(x.numpy()).all() for x in fn(**args)[:1])


def test_integers(call):
    name, fn, args = call
    for what in args:
        with pytest.raises(UnsupportedDtype, match=rf"{name}: expected {what} of a floating-point.* dtype, got int32; cast it"):
            fn(**{**args, what: args[what].astype("int32")})


def test_arrays_that_are_no_tensors(call):
    name, fn, args = call
    for what in args:
        with pytest.raises(TypeError, match=rf"{name}: expected {what} to be an EmberTensor, got ndarray; make one"):
            fn(**{**args, what: args[what].numpy()})


@pytest.mark.parametrize("axis", [0, 1])
def test_nothing(call, axis):
    name, fn, args = call
    what, x = next(iter(args.items()))
    shape = tuple(0 if i == axis else n for i, n in enumerate(x.shape))
    with pytest.raises(ShapeError, match=rf"{name}: expected {what} of shape .*, got {re.escape(str(shape))}"):
        fn(**{**args, what: ones(*shape)})


@pytest.mark.parametrize("name", ["selective_scan", "wkv", "linear_attention", "delta_rule", "gated_delta_rule", "mlstm", "slstm"])
def test_chunks_of_no_steps(name):
    fn, shapes = CALLS[name]
    with em.using("numpy"), pytest.raises(ValueError, match=f"{name}: expected chunk of at least 1 step, got 0"):
        fn(**{n: ones(*s) for n, s in shapes.items()}, chunk=0)


@pytest.mark.parametrize("name, parts", [("wkv", 3), ("mlstm", 2), ("slstm", 4)])
def test_half_a_state(name, parts):
    fn, shapes = CALLS[name]
    with em.using("numpy"):
        args = {n: ones(*s) for n, s in shapes.items()}
        for state in (ones(2, 3), (ones(2, 3),) * (parts - 1), (ones(3, 2),) * parts):
            with pytest.raises(ShapeError, match=f"{name}: expected initial to be the state that an earlier call returned"):
                fn(**args, initial=state)


@pytest.mark.parametrize("name", ["linear_scan", "linear_attention", "gated_delta_rule"])
def test_resets_are_booleans(name):
    fn, shapes = CALLS[name]
    with em.using("numpy"), pytest.raises(UnsupportedDtype, match=f"{name}: expected reset of dtype bool, got float32"):
        fn(**{n: ones(*s) for n, s in shapes.items()}, reset=ones(2, 4))


def test_a_nan_stays_in_its_sequence_and_goes_forward(call):
    """No other sequence of the batch sees it, nor what comes earlier; where steps of a chunk meet in one product, no earlier chunk."""
    name, fn, args = call
    chunked = {"chunk": 2} if args.keys() >= {"q", "k", "v"} else {}
    what, x = next(iter(args.items()))
    values = x.numpy().copy()
    values[1, 2] = np.nan
    y = fn(**{**args, what: em.tensor(values)}, **chunked)[0].numpy()
    assert np.isfinite(y[0]).all() and np.isfinite(y[1, :2]).all() and np.isnan(y[1, 2]).any()


@pytest.mark.parametrize("shapes, chunk", [([(1, 0, 3)], 4), ([(1, 4, 3), (1, 5, 3)], 4), ([(1, 4, 3)], 0)])
def test_over_chunks(shapes, chunk):
    with em.using("numpy"), pytest.raises(ShapeError, match="over_chunks: expected inputs of one length of at least 1"):
        over_chunks(lambda carry, xs, _: (carry, xs), (ones(1, 3),), [ones(*s) for s in shapes], chunk=chunk)
