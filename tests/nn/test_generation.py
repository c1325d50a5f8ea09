"""Generation: what each restriction leaves, against NumPy; batches, stops, text."""

import importlib.util
import itertools

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError, ShapeError
from ember_ml.nn.models.generation import complete, generate, stream_text
from ember_ml.nn.models.sampling import SamplingConfig, next_token
from tests.nn._help import close, get, numbers, put

VOCAB = 11


def model(layer="lstm"):
    return nn.Model.from_config({"vocab_size": VOCAB, "head": "dense", "norm": "layer_norm", "defaults": {"d_input": 8},
                                 "blocks": [layer, "mlp", "self_attention"]}, key=em.random.key(3))


def prompt(batch=2, length=4):
    return em.random.randint(em.random.key(5), (batch, length), 0, VOCAB)


def rows(steps) -> np.ndarray:
    """(B, length) of what generate yields."""
    return np.stack([t.numpy() for t in steps], axis=1)


def test_greedy_equals_the_parallel_form_token_by_token(backend):
    made, x = model(), prompt()
    got = rows(made.generate(x, 6))
    for _ in range(6):
        token = em.ops.argmax(made(x)[0][:, -1], axis=-1)
        x = em.ops.concat([x, em.ops.expand_dims(token, 1)], axis=1)
    assert got.tolist() == x[:, 4:].tolist()


def test_equal_keys_give_equal_tokens_on_every_engine():
    found = []
    for engine in ("numpy", "torch", "mlx"):
        if em.backend.installed(engine):
            with em.using(engine):
                found.append(rows(model().generate(prompt(), 12, em.random.key(1), temperature=0.8, top_k=7, top_p=0.95)).tolist())
    assert all(f == found[0] for f in found)
    with em.using("numpy"):
        assert rows(model().generate(prompt(), 12, em.random.key(2))).tolist() != found[0]


def drawn(fields, logits, n=400):
    """The set of tokens that n keys draw from one row of logits."""
    row = put(np.asarray(logits, np.float32)[None])
    return {next_token(SamplingConfig(**fields), row, em.random.key(i)).item() for i in range(n)}


def test_what_each_restriction_leaves(backend):
    logits = np.log([0.02, 0.4, 0.3, 0.2, 0.08])
    assert drawn({}, logits, 600) == {0, 1, 2, 3, 4}
    assert drawn({"top_k": 2}, logits, 60) == {1, 2}
    assert drawn({"top_p": 0.69}, logits, 60) == {1, 2}
    assert drawn({"top_p": 0.71}, logits, 60) == {1, 2, 3}
    assert drawn({"top_p": 1e-6}, logits, 10) == {1}
    assert drawn({"top_k": 3, "top_p": 0.5}, logits, 60) == {1, 2}          # of what top_k left, 4/9 and 3/9 reach 0.5
    assert drawn({"allowed": 2}, logits, 200) == {0, 1}
    assert drawn({"temperature": 0.0}, logits, 5) == {1}
    assert drawn({"temperature": 0.05}, logits, 60) <= {1, 2}


def test_draws_follow_the_probabilities(backend):
    p = np.array([0.1, 0.5, 0.15, 0.25])
    batch = put(np.tile(np.log(p), (4000, 1)))
    tokens = next_token(SamplingConfig(temperature=2.0), batch, em.random.key(0)).numpy()
    want = p ** 0.5 / (p ** 0.5).sum()
    assert np.abs(np.bincount(tokens, minlength=4) / 4000 - want).max() < 0.03   # about 4 standard deviations


def test_repetition_divides_positive_and_multiplies_negative_logits(backend):
    logits, seen = put([[2.0, 1.9, -1.0, -1.1]]), em.tensor([[True, False, True, False]])
    choose = [next_token(SamplingConfig(repetition=r), logits, None, seen).item() for r in (1.0, 1.04, 1.2)]
    assert choose == [0, 0, 1]
    only_low = em.tensor([[False, False, True, True]])
    assert next_token(SamplingConfig(repetition=1.2), put([[-3.0, -2.9, -1.0, -1.1]]), None, only_low).item() == 2
    assert next_token(SamplingConfig(repetition=3.0), put([[-3.0, -2.95, -1.0, -1.1]]), None, only_low).item() == 1


def test_repetition_counts_prompt_and_generated_tokens(backend):
    made, x = model(), prompt(1)
    ids = x[0].tolist()
    for _ in range(8):
        logits = made(em.tensor([ids]))[0][0, -1].numpy()
        for t in set(ids):
            logits[t] = logits[t] / 30.0 if logits[t] > 0 else logits[t] * 30.0
        ids.append(int(logits.argmax()))
    assert rows(made.generate(x, 8, repetition=30.0))[0].tolist() == ids[4:]
    assert rows(made.generate(x, 8))[0].tolist() != ids[4:]


def test_a_stop_token_ends_a_row_and_all_rows_end_the_stream(backend):
    made, x = model(), prompt(3)
    free = rows(made.generate(x, 12, em.random.key(4)))
    stop = [int(free[0, 3]), int(free[1, 5]), int(free[2, 1])]
    first = [next(i for i, t in enumerate(row) if t in stop) for row in free]
    got = rows(made.generate(x, 12, em.random.key(4), stop=stop))
    assert got.shape[1] == max(first) + 1
    for row, want, end in zip(got, free, first):
        assert row[:end + 1].tolist() == want[:end + 1].tolist() and set(row[end:]) == {want[end]}


def test_prompts_of_several_lengths_are_completed_as_if_alone(backend):
    made = model("gru")
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    alone = [rows(made.generate(em.tensor([p]), 6))[0].tolist() for p in prompts]
    assert complete(made, prompts, 6) == alone
    stopped = complete(made, prompts, 6, stop=[alone[0][2]])
    assert stopped[0] == alone[0][:alone[0].index(alone[0][2]) + 1]


def test_the_stream_is_lazy(backend):
    assert len(list(itertools.islice(model().generate(prompt(), 10 ** 9), 3))) == 3


def tokens(ids):
    with em.using("numpy"):
        return iter([em.tensor([i]) for i in ids])


def text_of(data: bytes, stop=()):
    return list(stream_text(tokens(data), lambda ids: bytes(ids).decode("utf-8", "replace"), stop))


def test_text_comes_in_whole_characters():
    assert text_of("añ€".encode()) == ["a", "ñ", "€"]
    assert "".join(text_of("an end cut sh€".encode()[:-1])) == "an end cut sh\ufffd"


def test_stop_strings_are_cut_and_what_may_become_one_is_held_back():
    assert text_of(b"abcSTOPdef", ["STOP"]) == ["a", "b", "c", ""]
    assert text_of(b"aSTxSTO", ["STOP"]) == ["a", "STx", "STO"]
    assert "".join(text_of(b"one. two", [".", " "])) == "one"


@pytest.mark.parametrize("fields, message", [
    ({"temperature": -1.0}, "temperature of at least 0"), ({"temperature": float("nan")}, "temperature: expected a finite number; received nan"),
    ({"repetition": float("nan")}, "repetition: expected a finite number; received nan"), ({"top_k": 0}, "top_k and allowed of at least 1"),
    ({"top_p": 0.0}, "0 < top_p <= 1"), ({"top_p": 1.5}, "received 1.5"), ({"topk": 3}, "unknown key 'topk'; did you mean top_k"),
    ({"repetition": 0.0}, "repetition above 0")])
def test_wrong_options(fields, message):
    with em.using("numpy"), pytest.raises(ConfigError, match=message):
        next(generate(model(), prompt(), 3, **fields))


def test_wrong_prompts():
    with em.using("numpy"):
        with pytest.raises(ShapeError, match=r"expected a prompt of shape \(batch, length\)"):
            next(generate(model(), em.zeros((2, 0), "int32"), 3))
        with pytest.raises(ShapeError, match=r"as em\.tensor.* makes; got \[\[1, 2\]\]"):
            next(generate(model(), [[1, 2]], 3))
        with pytest.raises(ShapeError, match="none empty"):
            complete(model(), [[1], []], 3)


def test_tokens_that_the_model_does_not_have_are_refused(backend):
    for wrong in (VOCAB, -1):
        with pytest.raises(ConfigError, match=f"expected tokens from 0 to 10 in the prompt; it has {wrong}$"):
            next(generate(model(), em.tensor([[1, wrong]]), 3))
        with pytest.raises(ConfigError, match=f"expected tokens from 0 to 10 in the prompt; it has {wrong}$"):
            complete(model(), [[1], [2, wrong, 3]], 3)


@pytest.mark.parametrize("stop", [0, 3, "ab"])
def test_a_stop_that_is_no_list_is_refused(stop):
    with em.using("numpy"), pytest.raises(ConfigError, match=r"expected stop to be a list of tokens, such as \[0\]"):
        next(generate(model(), prompt(), 3, stop=stop))


@pytest.mark.parametrize("head", [{"head": "classifier", "outputs": 3}, {}])
def test_a_model_without_a_head_of_tokens_is_refused(head):
    with em.using("numpy"):
        made = nn.Model.from_config({"vocab_size": VOCAB, "defaults": {"d_input": 4}, "blocks": ["gru"], **head})
        for run in (lambda: next(made.generate(prompt(), 3)), lambda: complete(made, [[1]], 3)):
            with pytest.raises(ConfigError, match="expected a model that tells the next token, with head 'tied' or 'dense'"):
                run()


def test_rows_that_no_token_has_are_never_drawn(backend):
    made = nn.Model.from_config({"vocab_size": 3, "vocab_multiple": 32, "head": "tied", "defaults": {"d_input": 4}, "blocks": ["gru"]},
                                key=em.random.key(2))
    assert made.embedding.weight.shape[0] == 32
    assert set(rows(made.generate(em.tensor([[1], [2]]), 12, em.random.key(0))).ravel().tolist()) <= {0, 1, 2}
    assert {t for row in complete(made, [[1], [2, 0]], 12, em.random.key(0), allowed=20) for t in row} <= {0, 1, 2}


def test_what_was_generated_with_stands_in_gradients(backend):
    """Also inside one, and with a layer that keeps what it made of its filters: no gradient is refused or lost afterwards."""
    model = nn.Model.from_config({"vocab_size": 7, "head": "tied", "defaults": {"d_input": 4}, "blocks": [
        {"layer": "hyena", "layer_config": {"l_max": 8, "filter": {"width": 4}}}, {"layer": "self_attention", "layer_config": {"rope": {}}}]})
    prompt = em.tensor(np.array([[1, 2, 3]], np.int32))
    before = nn.value_and_grad(model, lambda m: m.loss(prompt, prompt))(model.parameters(), model.buffers(), None)[1]

    def loss(m):
        assert len(list(m.generate(prompt, 2))) == 2
        return m.loss(prompt, prompt)

    list(model.generate(prompt, 2))
    after = nn.value_and_grad(model, loss)(model.parameters(), model.buffers(), None)[1]
    for name, g in before.items():
        close(after[name], get(g), 1e-6)
    x = em.zeros((1, 3, 4)) + 0.5
    assert np.abs(get(em.grad(lambda x: (model.blocks[0](x)[0] ** 2).sum())(x))).max() > 0.0


def test_a_torch_without_the_guard_that_decoding_uses(monkeypatch):
    """Its name is torch's own business: without it nothing but speed is lost."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from ember_ml.backend.torch import runtime
    monkeypatch.delattr(torch._C, "_AutoDispatchBelowAutograd")
    spec = importlib.util.spec_from_file_location("ember_ml.backend.torch.runtime_without", runtime.__file__)
    spec.loader.exec_module(other := importlib.util.module_from_spec(spec))
    x = torch.ones(2, requires_grad=True)
    with other.TorchRuntime().inference():
        assert not (x * 2).requires_grad
