"""What experts do: load, confidence, who works with whom, who works on what.

Within a training scope every router reports, at its place in the model,

    load             (E,)   share of the rows that each expert has
    load_cv                 standard deviation of the load over its mean: 0 when balanced, sqrt(E - 1) when one has all
    dead                    share of the experts without a row
    entropy                 mean over tokens of -sum_e p_e log p_e over log E: 1 undecided, 0 decided
    coactivation     (E, E) tokens that have both experts, over all tokens; the load of one in the diagonal
    classes          (E, C) rows of each expert by the class of their token, where `token_classes` names them
    information             mutual information of expert and class over the entropy of the class: 0 none, 1 all

All are sums over what the router has computed anyway.
"""

from __future__ import annotations

import math
from contextlib import contextmanager

from ember_ml.autodiff import stop_gradient
from ember_ml.ops import expand_dims, log, maximum, mean, reshape, scatter_add, sqrt, square, where, zeros
from ember_ml.ops import sum as total
from ember_ml.nn import scope
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


@contextmanager
def token_classes(classes: EmberTensor, count: int):
    """Inside, routers of as many tokens count their experts by class; for use within a training scope, without one nobody counts.

    Args: classes: integers in [0, count), one per token, in any shape: labels, or the tokens themselves. count: C.
    """
    open_scope = scope.current()
    if open_scope is None:
        yield
        return
    before, open_scope.classes = open_scope.classes, (reshape(classes, (-1,)), count)
    try:
        yield
    finally:
        open_scope.classes = before


def load(ids: EmberTensor, num_experts: int, weights: EmberTensor | None = None) -> EmberTensor:
    """(E,), float32: rows of each expert in ids (T, K); with weights, slots of weight 0 do not count."""
    ones = zeros(ids.shape, like=ids) + 1.0 if weights is None else (stop_gradient(weights) != 0).astype(dt.float32)
    counts = scatter_add(zeros((num_experts + 1,), like=ids), reshape(ids, (-1,)), reshape(ones, (-1,)), axis=0)
    return counts[:num_experts]


def share(rows: EmberTensor) -> EmberTensor:
    """(E,): the part of all rows that each expert has; 0 where there are none."""
    return rows / maximum(total(rows), 1.0)


def coefficient_of_variation(rows: EmberTensor) -> EmberTensor:
    """Standard deviation (of all, not of a sample) over mean; 0 for an empty load."""
    average = mean(rows)
    return sqrt(mean(square(rows - average))) / maximum(average, 1e-20)


def entropy(p: EmberTensor, unit: float | None = None) -> EmberTensor:
    """Mean over rows of -sum p log p, in units of so many nats, None for log E: p (T, E), which is scaled to sum to one."""
    if p.shape[1] == 1:
        return zeros((), like=p)
    p = p / maximum(total(p, axis=-1, keepdims=True), 1e-20)
    return total(p * log(maximum(p, 1e-30))) * (-1.0 / ((unit or math.log(p.shape[1])) * max(p.shape[0], 1)))


def coactivation(ids: EmberTensor, num_experts: int) -> EmberTensor:
    """(E, E): share of the tokens that have expert i and expert j, from ids (T, K)."""
    (tokens, slots), wide = ids.shape, num_experts + 1
    both = expand_dims(ids, 2) * wide + expand_dims(ids, 1)
    counts = _count(both, wide * wide)
    return reshape(counts, (wide, wide))[:num_experts, :num_experts] / max(tokens, 1)


def by_class(ids: EmberTensor, num_experts: int, classes: EmberTensor, count: int) -> EmberTensor:
    """(E, C): rows of each expert whose token has each class; ids (T, K), classes (T,) in [0, count)."""
    where_to = ids * count + expand_dims(classes.astype(ids.dtype), 1)
    return reshape(_count(where_to, (num_experts + 1) * count), (num_experts + 1, count))[:num_experts]


def mutual_information(table: EmberTensor) -> EmberTensor:
    """I(expert; class) over H(class), from counts (E, C). Counting alone makes it positive: about (E-1)(C-1) / (2 N H) for N
    rows that have nothing to do with their class (Miller 1955)."""
    joint = table / maximum(total(table), 1.0)
    expert, cls = total(joint, axis=1, keepdims=True), total(joint, axis=0, keepdims=True)
    ratio = joint / maximum(expert * cls, 1e-30)
    information = total(joint * log(where(joint > 0.0, ratio, 1.0)))
    h = -total(cls * log(maximum(cls, 1e-30)))
    return information / maximum(h, 1e-20)


def report(router, scores: EmberTensor, rows: EmberTensor, parts: EmberTensor, routing):
    """Sends everything above to the training scope. rows: (E,), the load in rows. parts: (E,), their `share`."""
    ids, experts = stop_gradient(routing.ids), rows.shape[0]
    scope.add_metric("load", parts, router)
    scope.add_metric("load_cv", coefficient_of_variation(rows), router)
    scope.add_metric("dead", mean((rows == 0).astype(dt.float32)), router)
    scope.add_metric("entropy", entropy(stop_gradient(scores)), router)
    if ids.shape[1] > 1:
        scope.add_metric("coactivation", coactivation(ids, experts), router)
    named = scope.current().classes if scope.current() else None
    if named is not None and named[0].shape[0] == ids.shape[0]:
        table = by_class(ids, experts, *named)
        scope.add_metric("classes", table, router)
        scope.add_metric("information", mutual_information(table), router)


def _count(values: EmberTensor, bins: int) -> EmberTensor:
    flat = reshape(values, (-1,))
    return scatter_add(zeros((bins,), like=values), flat, zeros(flat.shape, like=values) + 1.0, axis=0)
