"""scikit-learn estimators: the contract of scikit-learn itself, sequences, engines, and a score beside a plain baseline."""

import copy
import subprocess
import sys

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import RegistryError
from tests.conftest import ENGINES, require_engine

pytest.importorskip("sklearn", reason="needs scikit-learn; pip install 'ember-ml[sklearn]'")
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_digits, make_regression  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import MinMaxScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from ember_ml.sklearn import EmberClassifier, EmberRegressor  # noqa: E402

BOTH = pytest.mark.parametrize("kind", [EmberClassifier, EmberRegressor])

def failures(estimator) -> list:
    """All that scikit-learn checks and that did not pass; but for inputs of packages, or of a mode of scipy's, that are not there."""
    rows = check_estimator(estimator, on_skip=None, on_fail=None)
    assert len(rows) > 45
    absent = ("pandas is not installed", "SCIPY_ARRAY_API is not set")
    return [(r["check_name"], r["status"], repr(r["exception"])) for r in rows
            if r["status"] != "passed" and not (r["status"] == "skipped" and any(reason in str(r["exception"]) for reason in absent))]


@BOTH
def test_the_contract(kind):
    assert failures(kind(layers=["mlp"], d_model=8, epochs=10, batch_size=64, learning_rate=5e-2, device="numpy")) == []


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_the_contract_with_defaults(kind, engine):
    require_engine(engine)
    assert failures(kind(device=engine)) == []


def test_digits_beside_a_linear_baseline():
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, train_size=600, random_state=0, stratify=y)
    ours = EmberClassifier(epochs=12, random_state=0, device="numpy").fit(X, y)
    baseline = LogisticRegression(max_iter=300).fit(X / 16, y).score(X_test / 16, y_test)
    assert ours.score(X_test, y_test) > 0.94 and ours.score(X_test, y_test) > baseline - 0.02
    p = ours.predict_proba(X_test)
    np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=1e-12)
    assert (ours.classes_[p.argmax(axis=1)] == ours.predict(X_test)).all()


def sequences(n, seed=0):
    """Two noisy channels; the label says in which of them a bump comes first."""
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(n, 12, 2)) * 0.2, rng.integers(0, 2, n)
    first, second = rng.integers(0, 6, n), rng.integers(6, 12, n)
    X[np.arange(n), first, y] += 3.0
    X[np.arange(n), second, 1 - y] += 3.0
    return X, np.array(["early", "late"])[y]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_order_in_sequences_is_learned_by_layers_of_any_kind(engine):
    require_engine(engine)
    (X, y), (X_test, y_test) = sequences(96), sequences(64, 1)
    model = EmberClassifier(["min_gru", "mlp"], d_model=16, pool="mean", epochs=25, device=engine, random_state=1)
    assert model.fit(X, y).score(X_test, y_test) > 0.9
    assert model.model_.tensors()["head.weight"].backend.name == engine and list(model.classes_) == ["early", "late"]
    with pytest.raises(ValueError, match="X has 3 channels, but EmberClassifier is expecting 2"):
        model.predict(np.zeros((1, 12, 3)))


def test_a_seed_is_a_result_and_a_copy_predicts_alike():
    X, y = make_regression(60, 5, n_targets=2, random_state=0)
    make = lambda seed: EmberRegressor(epochs=3, random_state=seed, device="numpy")  # noqa: E731
    first, again, other = (make(s).fit(X, y).predict(X) for s in (4, 4, 5))
    assert first.shape == (60, 2) and (first == again).all() and (first != other).any()
    fitted = make(4).fit(X, y)
    assert (copy.deepcopy(fitted).predict(X) == first).all()
    assert not hasattr(clone(fitted), "model_") and clone(fitted).get_params() == fitted.get_params()


def test_in_a_pipeline_and_a_search():
    X, y = sequences(40)
    flat = X.reshape(40, -1)
    search = GridSearchCV(make_pipeline(MinMaxScaler(), EmberClassifier(layers=["mlp"], d_model=8, device="numpy", random_state=0)),
                          {"emberclassifier__epochs": [1, 4]}, cv=2, error_score="raise").fit(flat, y)
    assert search.best_params_["emberclassifier__epochs"] in (1, 4)
    assert len(cross_val_score(EmberClassifier(["gru"], d_model=4, epochs=1, device="numpy"), X, y, cv=2)) == 2


def test_misuse_is_told():
    X, y = sequences(8)
    with pytest.raises(RegistryError, match="did you mean hyena"):
        EmberClassifier(["hyenna"], device="numpy").fit(X, y)
    with pytest.raises(ValueError, match="requires y to be passed"):
        EmberRegressor(device="numpy").fit(X, None)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        EmberClassifier(device="numpy").fit(X, y[:-1])
    with pytest.raises(ValueError, match="NaN"):
        EmberRegressor(device="numpy").fit(X, np.full(8, np.nan))
    with em.using("numpy"):
        assert EmberClassifier(["hyena"], epochs=1, d_model=4).fit(X, y).model_.config.blocks[0].layer_config["l_max"] == 12


def test_without_scikit_learn_the_message_has_the_command():
    code = "import sys; sys.modules['sklearn'] = None\nimport ember_ml.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and 'MissingExtra: ember_ml.sklearn needs scikit-learn' in done.stderr and "ember-ml[sklearn]" in done.stderr
