"""Estimators in scikit-learn's manner: any list of Ember's layers as a classifier or a regressor of NumPy arrays.

    from ember_ml.sklearn import EmberClassifier
    EmberClassifier(layers=["gru", "self_attention"], random_state=0).fit(X, y).score(X_test, y_test)

X is a table (samples, features), or sequences (samples, length, channels). They go into pipelines, searches and cross-validation.
"""

from __future__ import annotations

import numpy as np

from ember_ml.backend import using
from ember_ml.errors import MissingExtra
from ember_ml.nn import losses
from ember_ml.nn.models import Model, ModelConfig
from ember_ml.nn.optimizers import AdamW, AdamWConfig, Schedule
from ember_ml.nn.pipeline.training import Trainer, TrainingConfig
from ember_ml.nn.pipeline.training.probes import options
from ember_ml.ops import random, tensor
from ember_ml.registry import from_dict, to_dict
from ember_ml.registry import layers as registered

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_array, check_consistent_length, check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ImportError:
    raise MissingExtra('ember_ml.sklearn needs scikit-learn, which is not installed; run: pip install "ember-ml[sklearn]"') from None

#: rows that are predicted at once
_AT_ONCE = 256


class EmberEstimator(BaseEstimator):
    """What classifier and regressor share: standardised inputs, a Model with a pooled head, the trainer.

    Args:
        layers: as a ModelConfig's blocks: names, or tables with options, of layers or registered blocks; None for two gated perceptrons, or
            for sequences a GRU and one.
        d_model: channels between them. pool: what stands for a sequence: "mean", "max", "last", "first".
        epochs: passes over the samples. batch_size, learning_rate, weight_decay: of AdamW, whose rate falls to a twentieth.
        standardize: give every feature (channel) mean 0 and standard deviation 1, as they are in the training data.
        device: engine, such as "torch" or "mlx"; None for Ember's choice.
        random_state: of the initial weights, and of the order of the samples.

    Attributes, once fitted: model_ (an Ember Model), n_features_in_ (features or channels), loss_ (of the last update), n_iter_ (epochs);
    of a classifier classes_.
    """

    def __init__(self, layers=None, *, d_model=32, pool="mean", epochs=60, batch_size=32, learning_rate=1e-2, weight_decay=1e-2,
                 standardize=True, device=None, random_state=None):
        self.layers = layers
        self.d_model = d_model
        self.pool = pool
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.standardize = standardize
        self.device = device
        self.random_state = random_state

    def _checked(self, X, reset: bool) -> np.ndarray:
        """X as float64 (samples, length, channels): a table has the length 1."""
        if np.asarray(X).ndim != 3:
            return np.asarray(validate_data(self, X, reset=reset), np.float64)[:, None, :]
        X = np.asarray(check_array(X, allow_nd=True, input_name="X"), np.float64)
        if reset:
            self.n_features_in_ = X.shape[-1]
        elif X.shape[-1] != self.n_features_in_:
            raise ValueError(f"X has {X.shape[-1]} channels, but {type(self).__name__} is expecting {self.n_features_in_} channels as input")
        return X

    def _samples(self, X, y):
        """(X, y), checked, from which the standardisation is taken; X standardised."""
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        X, y = self._checked(X, True), check_array(y, ensure_2d=False, dtype=None, input_name="y")
        check_consistent_length(X, y)
        self._shift, self._scale = _spread(X.reshape(-1, X.shape[-1])) if self.standardize else (0.0, 1.0)
        return (X - self._shift) / self._scale, y

    def _fit(self, X, y, head: str, outputs: int, loss):
        """Trains a new model on X (samples, length, channels) and targets y."""
        given = self.layers if self.layers is not None else ["gated_mlp"] * 2 if X.shape[1] == 1 else ["gru", "gated_mlp"]
        blocks = [{"layer": b, "layer_config": options(b, X.shape[1])} if isinstance(b, str) and b in registered else b for b in given]
        seed = int(check_random_state(self.random_state).randint(2 ** 31))
        n = len(X)
        size = min(self.batch_size, n)
        per_epoch = -(-n // size)
        steps = self.epochs * per_epoch
        with using(self.device):
            config = ModelConfig(blocks, inputs=X.shape[-1], head=head, outputs=outputs, pool=self.pool, norm="rms_norm",
                                 defaults={"d_input": self.d_model, "norm": "rms_norm"})
            model = Model(config, key=random.key(seed))
            X, order = X.astype(np.float32), _Order(n, size, seed)
            optimizer = AdamW(AdamWConfig(Schedule(peak=self.learning_rate, total=steps, warmup=min(10, steps // 10), floor=self.learning_rate / 20),
                                          weight_decay=self.weight_decay))
            trainer = Trainer(model, loss, optimizer, lambda i: (X[order(i)], y[order(i)]),
                              TrainingConfig(steps=steps, log_every=steps, eval_every=steps, checkpoint_every=steps), seed)
            self.loss_ = trainer.train()["loss"]
        self.model_, self.n_iter_ = model, self.epochs
        return self

    def _outputs(self, X) -> np.ndarray:
        """The model's outputs (samples, outputs), computed in float64 where the engine has it: no sample's depend on its neighbours'."""
        check_is_fitted(self)
        X = (self._checked(X, False) - self._shift) / self._scale
        like = next(iter(self.model_.tensors().values()))
        dtype = "float64" if like.backend.name != "mlx" else "float32"
        wide = {name: t.astype(dtype) for name, t in self.model_.tensors().items()}
        with self.model_.using(wide):
            found = [self.model_(tensor(X[at:at + _AT_ONCE], dtype=dtype, device=like.device))[0].numpy() for at in range(0, len(X), _AT_ONCE)]
        return np.concatenate(found).astype(np.float64)

    def __getstate__(self):
        """The model as its config and arrays: a copy may live on another machine and engine."""
        state = super().__getstate__()
        if "model_" in state:
            model = state["model_"]
            state = {**state, "model_": {"config": to_dict(model.config), "tensors": {k: t.numpy() for k, t in model.tensors().items()}}}
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        if "model_" in state:
            held = state["model_"]
            with using(self.device):
                model = Model(from_dict(ModelConfig, held["config"]), key=random.key(0))
                model.update({k: tensor(a) for k, a in held["tensors"].items()})
            self.model_ = model


class EmberClassifier(ClassifierMixin, EmberEstimator):
    """Any layers as a classifier, trained by cross-entropy. Arguments: see EmberEstimator."""

    def fit(self, X, y):
        """Trains on X (samples, features) or (samples, length, channels) and labels y (samples,) of any kind. Returns self."""
        X, y = self._samples(X, y)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        return self._fit(X, labels.astype(np.int32), "classifier", len(self.classes_), lambda m, x, t: losses.cross_entropy(m(x)[0], t))

    def predict_proba(self, X) -> np.ndarray:
        """The probability of each class (samples, classes), in the order of classes_."""
        logits = self._outputs(X)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    def predict(self, X) -> np.ndarray:
        """The likeliest class of each sample."""
        best = self._outputs(X).argmax(axis=1)
        return self.classes_[best]


class EmberRegressor(RegressorMixin, EmberEstimator):
    """Any layers as a regressor of one number or several, trained by the mean squared error of standardised targets. Arguments: see
    EmberEstimator.
    """

    def fit(self, X, y):
        """Trains on X (samples, features) or (samples, length, channels) and y (samples,) or (samples, outputs). Returns self."""
        X, y = self._samples(X, y)
        y = np.asarray(y, np.float64)
        self._one, y = y.ndim == 1, y.reshape(len(y), -1)
        self._y_shift, self._y_scale = _spread(y)
        y = ((y - self._y_shift) / self._y_scale).astype(np.float32)
        return self._fit(X, y, "regressor", y.shape[1], lambda m, x, t: losses.mse(m(x)[0], t))

    def predict(self, X) -> np.ndarray:
        """Numbers (samples,), or (samples, outputs) where it was fitted on such."""
        y = self._outputs(X) * self._y_scale + self._y_shift
        return y[:, 0] if self._one else y

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _spread(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, 1 for one that does not vary."""
    found = x.std(axis=0)
    return x.mean(axis=0), np.where(found > 0, found, 1.0)


class _Order:
    """The samples of each update, int (batch,): every epoch in an order of its own, filled up from its beginning."""

    def __init__(self, samples: int, batch: int, seed: int):
        self.samples, self.batch, self.seed, self._epoch = samples, batch, seed, None

    def __call__(self, update: int) -> np.ndarray:
        per_epoch = -(-self.samples // self.batch)
        epoch, at = divmod(update, per_epoch)
        if self._epoch != epoch:
            self._epoch, order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.samples)
            self._rows = np.resize(order, per_epoch * self.batch)
        return self._rows[at * self.batch:(at + 1) * self.batch]
