"""One template for every registered sequence mixer: parallel == chunked == scan of steps, on every engine."""

import itertools

import numpy as np
import pytest

import ember_ml as em
from ember_ml.weights import load, save_tree
from tests.conftest import ENGINES
from tests.nn._help import close, get, numbers, put, same_trees
from tests.nn._mixers import CONFIGS, LENGTH, build, every_mixer, every_precision, inputs, mixers, scan, start


def test_every_sequence_mixer_has_a_row():
    assert CONFIGS.keys() == set(mixers()), f"add a row to CONFIGS in tests/nn/_mixers.py, or take one away: {CONFIGS.keys() ^ set(mixers())}"


@every_precision
@every_mixer
@pytest.mark.parametrize("batch, length", [(2, LENGTH), (1, 7), (3, 1), (1, 2)])
def test_parallel_is_a_scan_of_steps(name, fields, engine, dtype, tolerance, batch, length):
    mixer = build(name, fields, engine, dtype)
    x = inputs(fields, engine, dtype, batch, length)
    y, state = mixer(x)
    assert state is None and y.shape == x.shape and y.dtype is x.dtype
    close(scan(mixer, x, start(mixer, batch, dtype))[0], y, tolerance)


@every_precision
@every_mixer
def test_chunks_of_any_length_are_the_whole(name, fields, engine, dtype, tolerance):
    mixer = build(name, fields, engine, dtype)
    x = inputs(fields, engine, dtype)
    whole, _ = mixer(x)
    state, parts, at = start(mixer, 2, dtype), [], 0
    for length in (1, 3, 2, 7):
        y, state = mixer(x[:, at:at + length], state)
        parts.append(get(y))
        at += length
    close(np.concatenate(parts, 1), whole, tolerance)
    same_trees(state, scan(mixer, x, start(mixer, 2, dtype))[1], tolerance, "state")


@every_precision
@every_mixer
def test_prefill_then_step(name, fields, engine, dtype, tolerance):
    mixer = build(name, fields, engine, dtype)
    x = inputs(fields, engine, dtype)
    whole = get(mixer(x)[0])
    for length in (1, 5, LENGTH - 1):
        y, state = mixer(x[:, :length], start(mixer, 2, dtype))
        close(y, whole[:, :length], tolerance, "prefill")
        close(scan(mixer, x[:, length:], state)[0], whole[:, length:], tolerance, "steps after it")


@every_mixer
def test_half_precision_stays_near_single(name, fields, backend):
    """Parameters, input and state in bfloat16, a stretch and then steps, beside float32 NumPy: within 8 % of the largest output."""
    whole = get(build(name, fields, "numpy")(inputs(fields, "numpy", "float32", length=5))[0])
    mixer, x = build(name, fields, backend, "bfloat16"), inputs(fields, backend, "bfloat16", length=5)
    y, state = mixer(x[:, :2], start(mixer, 2, "bfloat16"))
    assert str(y.dtype) == "bfloat16"
    close(np.concatenate([get(y), scan(mixer, x[:, 2:], state)[0]], 1), whole, 0.08)


@every_mixer
def test_the_past_alone_counts(name, fields, backend):
    mixer = build(name, fields, backend)
    x = numbers(0, 2, LENGTH, fields["d_input"])
    changed = x.copy()
    changed[:, 6:] += 10.0
    first, second = get(mixer(put(x))[0]), get(mixer(put(changed))[0])
    close(first[:, :6], second[:, :6], 1e-5)
    assert np.abs(first[:, 6:] - second[:, 6:]).max() > 1e-3


@every_mixer
def test_sequences_of_a_batch_are_independent(name, fields, backend):
    mixer = build(name, fields, backend)
    x = numbers(0, 3, LENGTH, fields["d_input"])
    whole = get(mixer(put(x))[0])
    for b in range(3):
        close(mixer(put(x[b:b + 1]))[0], whole[b:b + 1], 1e-5)


@every_mixer
def test_a_state_can_be_branched(name, fields, backend):
    mixer = build(name, fields, backend)
    x = inputs(fields, backend, "float32")
    _, state = mixer(x[:, :4], start(mixer, 2, "float32"))
    before = [t.tolist() for t in em.tree.tensors(state)]
    first, _ = mixer.step(x[:, 4], state)
    mixer.step(x[:, 7], state)
    again, _ = mixer.step(x[:, 4], state)
    assert first.tolist() == again.tolist()
    assert [t.tolist() for t in em.tree.tensors(state)] == before


@every_mixer
@pytest.mark.parametrize("first, second", list(itertools.permutations(ENGINES, 2)))
def test_a_state_continues_on_another_engine(name, fields, first, second, tmp_path):
    """Through a safetensors file, as a session on one machine is continued on another."""
    a, b = build(name, fields, first), build(name, fields, second)
    x = numbers(0, 2, LENGTH, fields["d_input"])
    whole = get(b(put(x, engine=second))[0])
    _, state = a(put(x[:, :5], engine=first), start(a, 2, "float32"))
    save_tree(tmp_path / "state.safetensors", state)
    tensors, _, _ = load(tmp_path / "state.safetensors", device=second)
    empty = start(b, 2, "float32")                          # for its form alone: a cache may have grown
    state = em.tree.unflatten(em.tree.flatten(empty)[1], [tensors[name] for name in em.tree.named(empty)])
    y, state = b(put(x[:, 5:9], engine=second), state)
    close(y, whole[:, 5:9], 1e-4, "chunk")
    close(scan(b, put(x[:, 9:], engine=second), state)[0], whole[:, 9:], 1e-4, "steps")
