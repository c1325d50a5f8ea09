"""What a person who does not know Ember yet tries from Python, and what it is told: what was expected, what came, what to do."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn, ops, weights
from ember_ml.errors import ConfigError, ShapeError, UnsupportedDtype, UnsupportedOp, WeightsError
from ember_ml.nn import layers, losses, optimizers
from ember_ml.nn.models import complete
from ember_ml.nn.pipeline import Prediction, SupervisedTraining, Trainer, TrainingConfig

D = 8


@cache
def made() -> SimpleNamespace:
    """Things to misuse, made once."""
    with em.using("numpy"):
        key, tokens = em.random.key(0), em.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
        family = {"d_input": D, "n_layer": 1}
        return SimpleNamespace(
            key=key, tokens=tokens, v=em.tensor([1.0, 2.0, 3.0]), x=em.random.normal(key, (2, 4, D)), array=np.zeros((2, D), np.float32),
            model=nn.Model.from_config({"family": "transformer", "vocab_size": 16, "heads": 2, **family}),
            regressor=nn.Model.from_config({"family": "lstm", "head": "regressor", "outputs": 2, **family}),
            dense=layers.Dense(layers.DenseConfig(D, 4)), rms=layers.RMSNorm(layers.RMSNormConfig(D)), norm=layers.LayerNorm(layers.LayerNormConfig(D)),
            groups=layers.GroupNorm(layers.GroupNormConfig(D, groups=2)), table=layers.Embedding(layers.EmbeddingConfig(4, D)),
            adam=optimizers.AdamW(optimizers.AdamWConfig()))


def trainer(m, loss=lambda model, x, y: model.loss(x, y), batch=None):
    return Trainer(m.model, loss, m.adam, batch or (lambda i: (m.tokens.numpy(), m.tokens.numpy())), TrainingConfig(steps=1))


ROWS = [
    # tensors
    ("zeros of no shape", lambda m: em.zeros(2.5), ShapeError, r"shape: expected lengths of at least 0, such as \(2, 3\), got 2.5"),
    ("zeros of a word", lambda m: em.zeros("ab"), ShapeError, "expected lengths of at least 0.* got 'ab'"),
    ("zeros of two numbers", lambda m: em.zeros(2, 3), UnsupportedDtype, "got 3; a shape of several axes is one tuple"),
    ("a negative length", lambda m: em.ones((2, -1)), ShapeError, r"lengths of at least 0.* got \(2, -1\)"),
    ("linspace", lambda m: em.linspace(0, 1, -2), ShapeError, "linspace: expected num of at least 0, got -2"),
    ("arange", lambda m: em.arange(0, 5, 0), ValueError, "arange: expected a step other than 0"),
    ("concat of nothing", lambda m: ops.concat([]), TypeError, "concat: expected a list of at least one tensor"),
    ("concat of a tensor", lambda m: ops.concat(m.v), TypeError, "concat: expected a list of tensors, got one EmberTensor"),
    ("stack of a tensor", lambda m: ops.stack(m.v), TypeError, "stack: expected a list of tensors, got one EmberTensor"),
    ("one_hot of floats", lambda m: ops.one_hot(m.v, 4), UnsupportedOp, r"one_hot: expected integer indices, got dtype float32; cast with .astype\('int32'\)"),
    ("an array as a filter", lambda m: ops.fftconv(em.zeros((1, 2, D)), m.array), TypeError, "fftconv: expected k to be an EmberTensor, got ndarray"),
    ("an array of labels", lambda m: losses.cross_entropy(em.zeros((2, D)), np.array([0, 1])), TypeError, "cross_entropy: expected labels to be an EmberTensor, got ndarray"),
    ("a list of labels", lambda m: losses.cross_entropy(em.zeros((2, D)), [0, 1]), TypeError, "expected labels to be an EmberTensor, got list"),
    ("saving a list", lambda m: weights.save("never", [m.v]), WeightsError, "save: expected a dict of tensors by name, got list; save_tree takes other trees"),
    # random numbers
    ("a key of a word", lambda m: em.random.key("a"), ValueError, "random.key: expected a whole number, .* got 'a'"),
    ("no keys", lambda m: em.random.split(m.key, 0), ValueError, "random.split: expected a number of keys of at least 1, got 0"),
    ("a random negative length", lambda m: em.random.uniform(m.key, (-2,)), ShapeError, r"lengths of at least 0.* got \(-2,\)"),
    ("a probability of 2", lambda m: em.random.bernoulli(m.key, 2.0, (3,)), ValueError, "bernoulli: expected a probability, 0 <= p <= 1, got 2.0"),
    # gradients
    ("the gradient of no function", lambda m: em.value_and_grad(m.v), TypeError, "value_and_grad: expected a function, got EmberTensor"),
    ("an argument that there is not", lambda m: em.grad(lambda v: v.sum(), argnums=3)(m.v), TypeError, "expected argnums among the 1 positional arguments of the call, got 3"),
    ("recomputing no function", lambda m: em.checkpoint(3), TypeError, "checkpoint: expected a function, got int"),
    ("compiling no function", lambda m: em.compile(3), TypeError, "compile: expected a function, got int"),
    ("a loss before its model", lambda m: nn.value_and_grad(lambda x: x, m.model), TypeError, r"expected a module and a function loss\(model, \*batch\), got function"),
    # layers
    ("a layer of a number", lambda m: layers.LSTM(16), ConfigError, r"LSTM: expected its configuration, LSTM\(LSTMConfig\(...\)\) with the fields d_input, .*; received 16$"),
    ("a layer of fields", lambda m: layers.LSTM(d_input=16), ConfigError, "received d_input=16$"),
    ("a layer of two numbers", lambda m: layers.Dense(16, 4), ConfigError, r"Dense\(DenseConfig\(...\)\) with the fields d_input, d_output, bias; received 16, 4$"),
    ("a layer of nothing", lambda m: layers.SelfAttention(), ConfigError, "SelfAttention: expected its configuration.* received nothing$"),
    ("a layer of another's config", lambda m: layers.LSTM(layers.DenseConfig(4)), ConfigError, r"received DenseConfig\(d_input=4"),
    ("a model of a dict", lambda m: nn.Model({"blocks": ["lstm"]}), ConfigError, r"Model: expected its configuration, Model\(ModelConfig\(...\)\)"),
    ("other channels than a norm's", lambda m: m.rms(em.zeros((2, 3))), ShapeError, r"RMSNorm: expected x of shape \(..., d_input\) = \(..., 8\), got \(2, 3\)"),
    ("one channel, which NumPy would spread", lambda m: m.rms(em.zeros((2, 1))), ShapeError, r"got \(2, 1\)"),
    ("one channel in LayerNorm", lambda m: m.norm(em.zeros((2, 1))), ShapeError, "LayerNorm: expected x of shape"),
    ("one channel in GroupNorm", lambda m: m.groups(em.zeros((2, 1))), ShapeError, "GroupNorm: expected x of shape"),
    ("an array in a norm", lambda m: m.norm(m.array), TypeError, r"LayerNorm: expected an EmberTensor, got ndarray; make one with em.tensor\(...\)"),
    ("a token below 0", lambda m: m.table(em.tensor([1, -1])), IndexError, r"embedding: expected tokens in \[0, 3\], got -1"),
    ("a token beyond the table", lambda m: m.table(em.tensor([4])), IndexError, "got 4"),
    # models
    ("a list of tokens", lambda m: m.model([[1, 2]]), TypeError, r"model: expected an EmberTensor of tokens, got list; make one with em.tensor\(...\)"),
    ("an array of channels", lambda m: m.regressor(m.array), TypeError, "model: expected an EmberTensor of channels, got ndarray"),
    ("other channels than a model's", lambda m: m.regressor(em.zeros((2, 3, 5))), ShapeError, r"model: expected inputs of shape \(batch, length, 8\), got \(2, 3, 5\)"),
    ("a state with a part too many", lambda m: m.model(m.tokens, state=[None] * 3), TypeError, "model: expected a state as .* a list of 2, one a block; received 3 in a list"),
    ("a state of a pooled model", lambda m: m.regressor(m.x, state=[]), TypeError, "a list of 1, one a block, and that of the pool; received 0 in a list"),
    ("a dict as a state", lambda m: m.model.step(m.tokens[:, 0], {}), TypeError, "received 0 in a dict"),
    ("a tensor as a state", lambda m: m.model(m.tokens, m.v), TypeError, "received 3 in a EmberTensor"),
    ("generating fewer than none", lambda m: list(m.model.generate(m.tokens, -1)), ConfigError, "generate: expected a length, .* received -1"),
    ("completing by half a token", lambda m: complete(m.model, [[1]], 0.5), ConfigError, "complete: expected a length, .* received 0.5"),
    # training
    ("an optimiser of a rate", lambda m: optimizers.AdamW(1e-3), ConfigError, r"AdamW: expected its configuration, AdamW\(AdamWConfig\(...\)\).* received 0.001"),
    ("a rate below 0", lambda m: optimizers.SGDConfig(rate=-1.0), ConfigError, "rate: expected .* a number of at least 0.0; received -1.0"),
    ("a peak that is no number", lambda m: optimizers.Schedule(peak=float("nan"), total=3), ConfigError, "peak: .*finite number|peak: .*greater than"),
    ("an average of more than everything", lambda m: optimizers.AdamWConfig(betas=(1.5, 0.9)), ConfigError, "betas.0: expected a number below 1.0; received 1.5"),
    ("a momentum of 2", lambda m: optimizers.SGDConfig(momentum=2.0), ConfigError, "momentum: expected a number below 1.0; received 2.0"),
    ("a schedule that ends before it begins", lambda m: optimizers.Schedule(peak=0.1, total=-1), ConfigError, "total: expected a number of at least 1; received -1"),
    ("an optimiser of nothing", lambda m: m.adam.init({}), ConfigError, "AdamW.init: expected parameters by name, at least one, .* received none"),
    ("an optimiser of a model", lambda m: m.adam.init(m.model), ConfigError, "AdamW.init: expected parameters by name.* received Transformer"),
    ("training what is no run", lambda m: SupervisedTraining("job.toml"), ConfigError, "expected a RunConfig, as .*read.* gives; received 'job.toml'"),
    ("predicting with no model", lambda m: Prediction("model.safetensors")(m.tokens), TypeError, r"pipeline: expected a model, got str; nn.Model.load\(path\) reads one"),
    ("a list of batches", lambda m: trainer(m, batch=[(m.tokens,)]), ConfigError, r"trainer: expected functions loss\(model, \*batch\) and batch\(i\), received function and list"),
    ("a batch that is no tuple", lambda m: trainer(m, batch=lambda i: m.array).train(), TypeError, "expected batch\\(i\\) to return a tuple of arrays, such as .* received ndarray"),
    # names from elsewhere
    ("backward", lambda m: m.v.backward(), AttributeError, "no attribute 'backward'; em.value_and_grad"),
    ("cuda", lambda m: m.v.cuda(), AttributeError, r"no attribute 'cuda'; x.to\('torch:cuda:0'\)"),
    ("detach", lambda m: m.v.detach(), AttributeError, r"em.stop_gradient\(x\)"),
    ("train", lambda m: m.model.train(), AttributeError, "no attribute 'train'; a module trains inside nn.value_and_grad"),
    ("state_dict", lambda m: m.model.state_dict(), AttributeError, r"\.tensors\(\) gives all tensors by name"),
    ("em.softmax", lambda m: em.softmax, AttributeError, "it is em.ops.softmax"),
    ("em.Tensor", lambda m: em.Tensor, AttributeError, "em.EmberTensor"),
    ("nn.LSTM", lambda m: nn.LSTM, AttributeError, "it is nn.layers.LSTM"),
    ("nn.Linear", lambda m: nn.Linear, AttributeError, "it is nn.layers.Dense"),
]


@pytest.mark.parametrize("call, error, message", [pytest.param(*row[1:], id=row[0]) for row in ROWS])
def test_misuse(call, error, message):
    with em.using("numpy"), pytest.raises(error, match=message):
        call(made())


def test_what_goes_wrong_inside_a_model_of_fields_is_not_laid_to_its_fields(monkeypatch):
    def fail(*_, **__):
        raise TypeError("inside")
    monkeypatch.setattr("ember_ml.nn.models.base.Embedding", fail)
    with em.using("numpy"), pytest.raises(TypeError, match="^inside$"):
        nn.Model.from_config({"family": "transformer", "vocab_size": 3, "d_input": 4, "n_layer": 1, "heads": 2})


def test_an_array_among_tensors(backend):
    with pytest.raises(TypeError, match="expected (at least one EmberTensor|EmberTensors or Python numbers), got ndarray; wrap arrays with em.tensor"):
        ops.rms_norm(np.zeros((2, 3), np.float32), em.ones((3,)), eps=1e-5)
    with pytest.raises(TypeError, match="got ndarray; wrap arrays with em.tensor"):
        made().dense(made().array) if backend == "numpy" else ops.linear(np.zeros((2, 3), np.float32), em.ones((4, 3)))


def test_hints_are_of_names_that_there_are_not_and_lead_to_some_that_there_are():
    from ember_ml.nn.module import _ELSEWHERE as of_modules
    from ember_ml.tensor.common.tensor import _ELSEWHERE as of_tensors
    assert not [name for name in of_tensors if hasattr(made().v, name)] and not [name for name in of_modules if hasattr(made().model, name)]
    v = made().v
    assert (v.reshape(3, 1).shape, em.expand_dims(v, axis=0).shape, em.permute_dims(v, (0,)).shape, v.ndim, v.size) == ((3, 1), (1, 3), (3,), 1, 3)
    for dtype in ("float16", "float32", "float64", "int32", "int64", "bool"):
        assert v.astype(dtype).dtype == em.tensor([0], dtype=dtype).dtype


def test_parts_of_the_library_are_there_without_an_import_of_their_own():
    assert em.nn is nn and em.data.__name__ == "ember_ml.data" and nn.pipeline.Trainer is Trainer and hasattr(nn.configs, "LSTMConfig")


def test_transforms_of_integers_are_single_as_everywhere(backend):
    x = em.tensor([3, -1, 2, 5])
    for made, expected in ((em.fft.fft(x), np.fft.fft([3, -1, 2, 5])), (em.fft.ifft(x), np.fft.ifft([3, -1, 2, 5])), (em.fft.rfft(x), np.fft.rfft([3, -1, 2, 5]))):
        assert made.dtype.name == "complex64"
        np.testing.assert_allclose(made.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_what_looks_like_misuse_and_is_none():
    m = made()
    with em.using("numpy"):
        assert complete(m.model, [[1, 2], [1]], 0) == [[], []] and list(m.model.generate(m.tokens, 0)) == []
        assert em.zeros(np.int64(2)).shape == (2,) and em.zeros(()).shape == () and em.zeros([2, 3]).shape == (2, 3)
        assert ops.concat(x for x in (m.v, m.v)).shape == (6,)
        assert em.random.bernoulli(m.key, m.v, (3,)).shape == (3,)
        assert losses.mse(m.v, m.v).item() == 0.0
        hidden, state = m.regressor.hidden(m.x, m.regressor.initial_state(2)[:-1])
        assert hidden.shape == m.x.shape and len(state) == 1
