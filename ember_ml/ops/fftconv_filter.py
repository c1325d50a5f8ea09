"""Filters of `fftconv` that do not change, so that their spectra are computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from ember_ml.autodiff import is_transforming, stop_gradient
from ember_ml.errors import BackendMismatch, ShapeError
from ember_ml.ops.dispatch import expect_tensors
from ember_ml.tensor import EmberTensor

#: spectra that one filter keeps: a model in use meets a handful of lengths, a server with ragged input would meet thousands
KEPT = 8


class PreparedFilter:
    """A filter for `fftconv` that keeps its spectra. Made by `prepare_filter`.

    Attributes: k (H, K) and k_reverse, (H, K') or None, as constants. The spectra live as long as the object, which
    holds the taps that they belong to.
    """

    __slots__ = ("_spectra", "k", "k_reverse")

    def __init__(self, k: EmberTensor, k_reverse: EmberTensor | None):
        self.k, self.k_reverse, self._spectra = k, k_reverse, {}

    def __repr__(self) -> str:
        reverse = "" if self.k_reverse is None else f", k_reverse {list(self.k_reverse.shape)}"
        return f"PreparedFilter(k {self.k.dtype}{list(self.k.shape)}{reverse}, {self.k.device})"

    def spectrum(self, key: Hashable, make: Callable[[], tuple]) -> tuple:
        """`make()` at the first call with this key, the same arrays at the next ones; the last KEPT of them are held.

        Args:
            key: what the spectrum depends on besides the taps: algorithm, dtype, size of the transform, ...
            make: gives a tuple of native arrays of the filter's engine. They are computed at once, so that a tracing
                compiler meets finished arrays.
        """
        found = self._spectra.get(key)
        if found is None:
            found = make()
            self.k.backend.runtime.synchronize(list(found))
            while len(self._spectra) >= KEPT:
                self._spectra.pop(next(iter(self._spectra)), None)
            self._spectra[key] = found
        return found


def prepare_filter(k: EmberTensor, k_reverse: EmberTensor | None = None) -> PreparedFilter:
    """A filter for many calls of `fftconv(u, prepared)`, which then transform it once for each engine and length.

    No gradient flows into a prepared filter: where k is trained, give `fftconv` k itself.

    Args:
        k: (H, K), as in `fftconv`. k_reverse: (H, K') on the same engine, for a bidirectional convolution.

    Raises ShapeError for other shapes, BackendMismatch for two engines, RuntimeError inside a gradient or a compiled
    function, where values are not there yet.
    """
    expect_tensors("prepare_filter", {"k_reverse": k_reverse}, k=k)
    for name, t in (("k", k), ("k_reverse", k_reverse)):
        if t is not None and (t.ndim != 2 or t.shape[1] == 0 or t.shape[0] != k.shape[0]):
            raise ShapeError(f"prepare_filter: expected {name} of shape (heads, length >= 1), got {t.shape}")
    if k_reverse is not None and k_reverse.backend is not k.backend:
        raise BackendMismatch(f"prepare_filter: expected k and k_reverse on one engine, got {k.backend.name} and "
                              f"{k_reverse.backend.name}; move one of them, for example k_reverse.to({k.backend.name!r})")
    if is_transforming():
        raise RuntimeError("prepare_filter: expected to be called outside of gradients and compiled functions, which have "
                           "no values to keep; prepare the filter before, or give fftconv the filter itself")
    return PreparedFilter(stop_gradient(k), None if k_reverse is None else stop_gradient(k_reverse))
