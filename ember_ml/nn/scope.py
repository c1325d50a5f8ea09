"""The one place through which a forward pass has side effects, so that forward itself is pure.

Dropout keys come from the scope; auxiliary losses, metrics and new values of buffers go to it. `nn.value_and_grad`
opens one for training and returns all of it as outputs, so that a compiled step carries them and a resumed run repeats
them bit for bit.
Without a scope a forward pass is evaluation: no dropout, no updates.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar

from ember_ml.ops import random
from ember_ml.tensor import EmberTensor

_current: ContextVar[Scope | None] = ContextVar("ember_scope", default=None)


class Scope:
    """What one training forward pass draws and reports.

    Args:
        key: random key; each `next_key` gives the next one of its children. A pair (key, n) stands for the n-th child of a key (which may
            be a pair itself), made when it is first needed: a model without random layers does not pay for it.
        recompute: whether blocks keep only their input for the gradient, see `ember_ml.nn.recompute`.
    """

    def __init__(self, key: EmberTensor | tuple | None = None, recompute: bool = False):
        self._key, self.recompute = key, recompute
        self.drawn = 0
        #: (class of each token (tokens,), number of classes) that experts are counted by, see `nn.moe.token_classes`
        self.classes: tuple[EmberTensor, int] | None = None
        self.losses: dict[str, EmberTensor] = {}
        self.metrics: dict[str | tuple[int, str], EmberTensor] = {}
        self.updates: dict[tuple[int, str], EmberTensor] = {}

    @property
    def key(self) -> EmberTensor | None:
        """The random key, None where there is none."""
        self._key = _child(self._key)
        return self._key

    def take(self, losses: dict, metrics: dict, updates: dict):
        """Adds what another scope was told."""
        for name, value in losses.items():
            self.losses[name] = self.losses[name] + value if name in self.losses else value
        self.metrics.update(metrics)
        self.updates.update(updates)


def _child(key):
    return random.fold_in(_child(key[0]), key[1]) if isinstance(key, tuple) else key


@contextmanager
def training(key: EmberTensor | tuple | None = None, recompute: bool = False):
    """Inside `with nn.training(key) as scope:`, forward passes are training passes."""
    scope = Scope(key, recompute)
    token = _current.set(scope)
    try:
        yield scope
    finally:
        _current.reset(token)


def current() -> Scope | None:
    """The open scope, or None in evaluation."""
    return _current.get()


def recomputes() -> bool:
    """Whether blocks are to keep only their input for the gradient. False in evaluation."""
    scope = _current.get()
    return scope is not None and scope.recompute


def next_key() -> EmberTensor:
    """A fresh key for a random layer. Raises RuntimeError outside a scope or where it has no key."""
    scope = _current.get()
    if scope is None or scope.key is None:
        raise RuntimeError("next_key: expected an open training scope with a key; use nn.value_and_grad(model, loss)"
                           "(..., key) or `with nn.training(em.random.key(0)):`")
    scope.drawn += 1
    return random.fold_in(scope.key, scope.drawn)


def add_loss(name: str, value: EmberTensor):
    """Adds a scalar to the training loss; equal names add up. Does nothing in evaluation."""
    scope = _current.get()
    if scope is not None:
        scope.take({name: value}, {}, {})


def add_metric(name: str, value: EmberTensor, module=None):
    """Reports a number, vector or matrix of this step; a later one of the same name replaces it. Does nothing in evaluation.

    Args:
        module: a module with tensors of its own; the name is then preceded by its place, as in
            "blocks.1.layer.router.load_cv".
    """
    scope = _current.get()
    if scope is not None:
        scope.metrics[name if module is None else (id(module), name)] = value


def update_buffer(module, attr: str, value: EmberTensor):
    """The value of a buffer after this step. Does nothing in evaluation."""
    scope = _current.get()
    if scope is not None:
        scope.updates[(id(module), attr)] = value
