"""Plain models to compare with: the commonest class, nearest neighbours, logistic regression, support vectors, ridge regression."""

from __future__ import annotations

import numpy as np

#: distances at once, to bound the memory; rows that the slower models are fitted to
_BLOCK, _FITTED = 64, 5000


def nearest_neighbour(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The label of the nearest training row (Euclidean) for each test row; rows (N, features)."""
    train, test = train.astype(np.float32), test.astype(np.float32)
    squares = np.square(train).sum(1)
    nearest = [np.argmin(squares - 2.0 * (test[i:i + _BLOCK] @ train.T), axis=1) for i in range(0, len(test), _BLOCK)]
    return labels[np.concatenate(nearest)]


def ridge(train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predictions (tests, outputs) of W x + b with the least |W x + b - y|^2 + lambda |W|^2.

    Of seven lambda from 10^-3 to 10^3 times N / 1000 the one with the smallest leave-one-out error on the training rows is taken.

    Args: train, test: (N, features). targets: (N, outputs).

    Source: Golub, Heath and Wahba 1979, Generalized Cross-Validation, equation 1.3 (leave-one-out in closed form).
    """
    x, y = train.astype(np.float64), targets.astype(np.float64)
    mx, my = x.mean(0), y.mean(0)
    x, y, n = x - mx, y - my, len(x)
    values, vectors = np.linalg.eigh(x.T @ x)
    values = np.maximum(values, 0.0)
    turned, moment = x @ vectors, vectors.T @ (x.T @ y)
    best = None
    for scale in 10.0 ** np.arange(-3, 4):
        shrunk = 1.0 / (values + scale * n / 1000.0)
        weights = moment * shrunk[:, None]
        leverage = np.einsum("nf,f,nf->n", turned, shrunk, turned) + 1.0 / n
        error = np.square((y - turned @ weights) / np.maximum(1.0 - leverage, 1e-9)[:, None]).mean()
        if best is None or error < best[0]:
            best = error, vectors @ weights
    return (test - mx) @ best[1] + my


def classification_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Accuracy of plain classifiers on standardised rows (N, features).

    Where scikit-learn is installed, also of logistic regression (C = 0.1) and of a support vector machine with a Gaussian kernel (C = 10,
    gamma = 1 / (features variance)), on the first 5,000 training rows.
    """
    commonest = np.bincount(labels).argmax()
    scores = {"commonest class": float((wanted == commonest).mean()),
              "nearest neighbour": float((nearest_neighbour(train, labels, test) == wanted).mean())}
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import SVC
    except ImportError:
        return scores
    for name, model in (("logistic regression", LogisticRegression(C=0.1, max_iter=1000)), ("support vector machine", SVC(C=10.0))):
        scores[name] = float(model.fit(train[:_FITTED], labels[:_FITTED]).score(test, wanted))
    return scores


def regression_scores(train: np.ndarray, targets: np.ndarray, test: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Mean squared error of plain models: always the mean of the training targets, and ridge regression."""
    return {"mean of the targets": float(np.square(wanted - targets.mean(0)).mean()),
            "ridge regression": float(np.square(wanted - ridge(train, targets, test)).mean())}
