"""The probe tasks: what a correct solver must be able to rely on. That they are MAD's, to the bit, the golden cases show."""

import numpy as np
import pytest

from ember_ml.data.synthetic import (
    IGNORED, TASKS, Compression, FuzzyInContextRecall, InContextRecall, Memorization, NoisyInContextRecall, SelectiveCopying,
)
from ember_ml.errors import ConfigError


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_gives_the_same_sequences_and_leaves_the_global_state(name):
    task, state = TASKS[name](), np.random.get_state()[1].copy()
    first, again = task.instances(3, 7), task.instances(3, 7)
    assert all(np.array_equal(a, b) and a.dtype == np.int64 for a, b in zip(first, again))
    assert not np.array_equal(first[0], task.instances(3, 8)[0])
    assert np.array_equal(np.random.get_state()[1], state)
    inputs, targets = first
    assert inputs.shape == targets.shape and 0 <= inputs.min() and inputs.max() < task.vocab_size
    assert targets.max() < task.vocab_size and set(targets[targets < 0]) <= {IGNORED}


def test_training_asks_for_every_next_token():
    inputs, targets = InContextRecall(seq_len=20).instances(2, 0)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("task", [InContextRecall(seq_len=40), InContextRecall(seq_len=40, multi_query=False), NoisyInContextRecall(seq_len=40)])
def test_a_recalled_value_stood_behind_its_key_before(task):
    inputs, targets = task.instances(20, 1, training=False)
    plain = task.vocab_size - task.noise_vocab_size - (not task.multi_query)
    assert (targets[:, -1] != IGNORED).all()
    for row, wanted in zip(inputs, targets):
        judged = np.flatnonzero(wanted != IGNORED)
        assert task.multi_query or len(judged) == 1
        for at in judged:
            earlier = [i for i in range(at) if row[i] == row[at]]
            assert row[at] < plain // 2 and earlier and all(row[i + 1] == wanted[at] for i in earlier)


def test_noise_has_its_share_and_its_tokens():
    task = NoisyInContextRecall(seq_len=200, frac_noise=0.4)
    inputs, _ = task.instances(50, 3)
    assert np.mean(inputs >= 16) == pytest.approx(0.4, abs=0.03)


def contains(row, part):
    return any(tuple(row[i:i + len(part)]) == part for i in range(len(row) - len(part) + 1))


def lost(task, count=200):
    """Sequences that never show what they ask for at their end."""
    inputs, targets = task.instances(count, 5, training=False)
    missing = 0
    for row, wanted in zip(inputs, targets):
        whole = np.append(row, wanted[-1])
        size = next(n for n in range(1, 4) if wanted[-n - 1] == IGNORED)     # of the answer
        missing += not contains(whole[:-size - 3], tuple(whole[-size - 3:]))
    return missing


def test_a_fuzzy_key_that_is_asked_for_was_shown():
    assert lost(FuzzyInContextRecall(seq_len=48, multi_query=False)) == 0
    assert lost(FuzzyInContextRecall(seq_len=48, multi_query=False, as_published=True)) > 0
    assert lost(FuzzyInContextRecall(seq_len=20)) == 0


def test_tokens_to_copy_stand_in_their_order_among_blanks():
    inputs, targets = SelectiveCopying(seq_len=30, num_tokens_to_copy=6).instances(20, 2)
    for row, wanted in zip(inputs, targets):
        assert row[23] == 15 and (row[24:] == 14).all() and (wanted[:24] == IGNORED).all()
        assert row[:23][row[:23] != 14].tolist() == wanted[24:].tolist()


def test_noise_is_not_judged_in_compression():
    fields = dict(vocab_size=16, seq_len=20, noise_vocab_size=4, frac_noise=0.5)
    inputs, targets = Compression(**fields).instances(30, 0)
    noise = (inputs >= 11) & (inputs < 15)
    assert noise.any() and (targets[noise] == IGNORED).all() and (targets[~noise] == inputs[~noise]).all()
    published = Compression(**fields, as_published=True).instances(30, 0)
    assert np.array_equal(published[0], inputs) and np.array_equal(published[1], inputs)


def test_memorized_values_are_those_of_the_map():
    task = Memorization(vocab_size=20, seq_len=12, noise_vocab_size=3, frac_noise=0.3)
    table = dict(task.key_values())
    inputs, targets = task.instances(20, 0)
    assert len(table) == 8 and sorted(table.values()) == list(range(8, 16))
    for row, wanted in zip(inputs, targets):
        for at in np.flatnonzero(wanted != IGNORED):
            assert row[at] == 19 and wanted[at] == table[row[at - 1]]


@pytest.mark.parametrize("name, fields, message", [
    ("in_context_recall", dict(seq_len=7), "an even seq_len, received 7"),
    ("in_context_recall", dict(frac_noise=0.5), "noise_vocab_size > 0 where there is noise"),
    ("in_context_recall", dict(vocab_size=2, multi_query=False), "received 2"),
    ("fuzzy_in_context_recall", dict(seq_len=12), "seq_len over 12, two pairs"),
    ("fuzzy_in_context_recall", dict(vocab_size=5), "at least 3 key and 3 value tokens"),
    ("selective_copying", dict(seq_len=33), "seq_len over 2 num_tokens_to_copy"),
    ("memorization", dict(vocab_size=2), "a key and a value"), ("compression", dict(frac_noise=1.0, noise_vocab_size=2), "frac_noise < 1"),
    ("compression", dict(seq_length=3), "did you mean seq_len")])
def test_a_task_says_what_it_needs(name, fields, message):
    with pytest.raises(ConfigError, match=message):
        TASKS[name](**fields)
