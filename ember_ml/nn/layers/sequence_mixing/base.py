"""What sequence mixers have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from ember_ml.autodiff import tree
from ember_ml.errors import BackendMismatch, EmberError, ShapeError, UnsupportedDtype
from ember_ml.nn.module import Module
from ember_ml.ops import expand_dims, squeeze
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt

State = object


def state_dtype(dtype):
    """The dtype of a recurrent state beside activations of `dtype`: float32 at least."""
    return "float32" if str(dtype) in ("float16", "bfloat16") else dtype


def _explained(call: Callable) -> Callable:
    """A `forward` or `step` that says what it was asked wrongly in the layer's own terms. The look is taken after a failure alone."""
    steps = call.__name__ == "step"

    @wraps(call)
    def explained(self, x, *args, **kw):
        state = args[0] if args else kw.get("state")
        if steps and state is None:
            raise TypeError(f"{type(self).__name__}.step: expected a state, from initial_state(batch) or the position before; received None")
        try:
            return call(self, x, *args, **kw)
        except (ValueError, TypeError, LookupError, AttributeError) as e:
            better = self._misuse(f"{type(self).__name__}.{call.__name__}", x, state, steps)
            if better is None:
                raise
            raise better from e

    return explained


def _checked(initial_state: Callable) -> Callable:
    """An `initial_state` that refuses what is no batch or no dtype of activations, of which a layer would make a state all the same."""
    @wraps(initial_state)
    def checked(self, batch: int, dtype="float32"):
        if not hasattr(batch, "__index__") or batch < 1:
            raise ShapeError(f"{type(self).__name__}.initial_state: expected a batch of at least 1, received {batch!r}")
        if dt.dtype(dtype).kind != "float":
            raise UnsupportedDtype(f"{type(self).__name__}.initial_state: expected float32, float64, float16 or bfloat16, received {dtype}")
        return initial_state(self, batch, dtype)

    return checked


class SequenceMixer(Module):
    """A layer that mixes positions: (B, L, d_input) to (B, L, d_input), channels last.

    `forward(x, state)` continues from a state and returns the next one; without a state it starts from nothing and returns None as the state.
    `step` takes one position, (B, d_input). A state is a tree of tensors: it can be saved, restored and branched.
    A layer that keeps packed documents apart (`ember_ml.nn.packing`) sets `cannot_pack` to None; one that cannot, to the reason.
    """

    mixes_sequence = True
    cannot_pack: str | None = "it does not say how (its class sets cannot_pack)"

    def __init_subclass__(cls, **kw):
        super().__init_subclass__(**kw)
        for name, guard in (("forward", _explained), ("step", _explained), ("initial_state", _checked)):
            if name in vars(cls):
                setattr(cls, name, guard(vars(cls)[name]))

    def forward(self, x: EmberTensor, state: State = None) -> tuple[EmberTensor, State]:
        raise NotImplementedError

    @_explained
    def step(self, x: EmberTensor, state: State) -> tuple[EmberTensor, State]:
        """One position, (B, d_input): `forward` over a length of one, unless a layer has a shorter way."""
        y, state = self.forward(expand_dims(x, 1), state)
        return squeeze(y, 1), state

    def initial_state(self, batch: int, dtype="float32") -> State:
        """The state before the first position."""
        raise NotImplementedError

    def _misuse(self, where: str, x, state: State, steps: bool) -> Exception | None:
        """What is wrong with the input of a call that failed; None if it is something else."""
        if not isinstance(x, EmberTensor):
            return TypeError(f"{where}: expected x to be an EmberTensor, got {type(x).__name__}; make one with em.tensor(...)")
        width, own = getattr(getattr(self, "config", None), "d_input", None), next(iter(self.tensors().values()), None)
        if x.ndim != (2 if steps else 3) or 0 in x.shape or (width is not None and x.shape[-1] != width):
            return ShapeError(f"{where}: expected x of shape ({'batch' if steps else 'batch, length'}, d_input = {width}), nothing empty; "
                              f"got {x.shape}")
        if own is not None and own.backend is not x.backend:
            return BackendMismatch(f"{where}: expected x on {own.backend.name}, where the layer is, got it on {x.backend.name}; move one of "
                                   f"them, for example x.to({own.backend.name!r})")
        return None if state is None else self._state_misuse(where, x, state)

    def _state_misuse(self, where: str, x: EmberTensor, state: State) -> Exception | None:
        try:
            expected, found = tree.named(self.initial_state(x.shape[0], x.dtype)), tree.named(state)
        except (EmberError, NotImplementedError):
            return None
        if list(expected) != list(found) or not all(isinstance(t, EmberTensor) for t in found.values()):
            return TypeError(f"{where}: expected a state of this layer, from initial_state(batch) or an earlier call, with the tensors "
                             f"{', '.join(expected)}; received {', '.join(found) or type(state).__name__}")
        for name, t in found.items():
            if t.backend is not x.backend:
                return BackendMismatch(f"{where}: expected the state on {x.backend.name}, where x is, got {name} on {t.backend.name}; move it "
                                       f"with em.tree.map(lambda t: t.to({x.backend.name!r}), state)")
            like = expected[name].shape
            if t.ndim != len(like) or (like[:1] == (x.shape[0],) != t.shape[:1]):
                return ShapeError(f"{where}: expected a state of batch {x.shape[0]}, as x is, got {name} of shape {t.shape}, where "
                                  f"initial_state({x.shape[0]}) gives {like}")
        return None
