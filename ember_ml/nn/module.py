"""Module: a tree of parameters and buffers, with the names under which they are saved."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import wraps

from ember_ml import weights
from ember_ml.errors import Elsewhere, ShapeError, WeightsError
from ember_ml.registry.config import missing_config
from ember_ml.tensor import EmberTensor
from ember_ml.weights import LoadReport


#: what people who come from elsewhere look for, and where it is
_ELSEWHERE = {
    **dict.fromkeys(("train", "eval"), "a module trains inside nn.value_and_grad or `with nn.training(key):`, and evaluates everywhere else"),
    "state_dict": ".tensors() gives all tensors by name, weights.save writes them", "load_state_dict": ".load_weights(path) takes a file, .install(tensors) tensors",
    "named_parameters": ".parameters() is a dict by name", "zero_grad": "gradients are results of nn.value_and_grad, nothing keeps them",
    "requires_grad_": ".freeze(pattern) and .unfreeze(pattern) choose what is trained", "cuda": ".to('torch:cuda:0') moves it", "cpu": ".to('torch:cpu') moves it",
    "half": ".astype('float16') casts it", "float": ".astype('float32') casts it", "double": ".astype('float64') casts it",
}


def _explained(init: Callable) -> Callable:
    """A constructor that says so where it was not given the class's Config. The look is taken after a failure alone."""
    takes_fields = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(init).parameters.values())

    @wraps(init)
    def explained(self, *args, **kw):
        try:
            init(self, *args, **kw)
        except (TypeError, AttributeError, ShapeError) as e:
            given, wanted = args[0] if args else kw.get("config"), getattr(type(self), "Config", None)
            inner = type(self).__init__ is not explained    # a subclass called it, with what it made itself
            if inner or takes_fields or not dataclasses.is_dataclass(wanted) or isinstance(given, wanted):
                raise
            said = [*map(repr, args), *(f"{k}={v!r}" for k, v in kw.items())]
            raise missing_config(type(self), ", ".join(said) or "nothing") from e

    return explained


class Module:
    """Base of layers, blocks and models.

    Every EmberTensor attribute is a parameter, unless `buffer` put it there; modules in attributes, lists, tuples and
    dicts are children. Names are dotted paths in the order of assignment; attributes that begin with an underscore are
    private.
    A tensor or module that hangs in two places is one, under its first name. `forward` changes nothing: what a call
    draws or reports goes through `ember_ml.nn.scope`.
    """

    def __init_subclass__(cls, **kw):
        super().__init_subclass__(**kw)
        if "__init__" in vars(cls):
            cls.__init__ = _explained(cls.__init__)

    def __call__(self, *args, **kw):
        return self.forward(*args, **kw)

    #: why the module cannot work on rows of several documents (see `ember_ml.nn.packing`), None if it can
    cannot_pack: str | None = None
    #: whether what comes later in a row never matters, so that padding at its end does no harm
    only_looks_back: bool = False

    def buffer(self, name: str, value: EmberTensor):
        """Sets an attribute that is state but no parameter: running statistics, fixed tables."""
        self.__dict__.setdefault("_buffers", set()).add(name)
        setattr(self, name, value)

    def modules(self) -> dict[str, Module]:
        """This module, under the name "", and all modules in it, each once, by dotted name."""
        return dict(_modules(self, "", set()))

    def places(self) -> dict[str, list[tuple[Module, str]]]:
        """Where each tensor hangs: name -> (owning module, attribute), more than one for a tied tensor."""
        places: dict[str, list[tuple[Module, str]]] = {}
        names: dict[int, str] = {}
        for name, owner, attr in _walk(self, "", set()):
            places.setdefault(names.setdefault(id(getattr(owner, attr)), name), []).append((owner, attr))
        return places

    def entries(self) -> Iterator[tuple[str, Module, str]]:
        """(dotted name, owning module, attribute) of every tensor, each once."""
        seen: set[int] = set()
        for name, owner, attr in _walk(self, "", set()):
            if id(getattr(owner, attr)) not in seen:
                seen.add(id(getattr(owner, attr)))
                yield name, owner, attr

    def parameters(self, trainable: bool = False) -> dict[str, EmberTensor]:
        """Parameters by name; with `trainable`, without the frozen ones."""
        return {name: getattr(owner, attr) for name, owner, attr in self.entries()
                if not owner._is_buffer(attr) and not (trainable and owner._is_frozen(attr))}

    def buffers(self) -> dict[str, EmberTensor]:
        """Buffers by name."""
        return {name: getattr(owner, attr) for name, owner, attr in self.entries() if owner._is_buffer(attr)}

    def tensors(self) -> dict[str, EmberTensor]:
        """Parameters and buffers by name: what a weight file holds."""
        return {name: getattr(owner, attr) for name, owner, attr in self.entries()}

    def count(self) -> int:
        """Number of parameters, elements counted."""
        return sum(p.size for p in self.parameters().values())

    def update(self, tensors: dict[str, EmberTensor]):
        """Replaces tensors by name. Checks all names, shapes and dtypes before it changes any.

        Raises WeightsError for unknown names, ShapeError for another shape or dtype.
        """
        places = self._find(tensors, "update")
        for name, new in tensors.items():
            old = getattr(*places[name][0])
            if new.shape != old.shape or new.dtype is not old.dtype:
                raise ShapeError(f"{type(self).__name__}.update: expected {name} of {old.dtype}{list(old.shape)}, "
                                 f"got {new.dtype}{list(new.shape)}")
        for name, new in tensors.items():
            _set(places[name], new)

    def install(self, tensors: dict[str, EmberTensor]):
        """Replaces tensors by name whatever their shapes, dtypes and engines. Raises WeightsError for unknown names."""
        places = self._find(tensors, "install")
        for name, new in tensors.items():
            _set(places[name], new)

    @contextmanager
    def using(self, tensors: dict[str, EmberTensor]):
        """Inside `with model.using({...}):`, these tensors stand in for the module's own, which come back at the end.

        Shapes and dtypes are free: float64 copies for a check, say. Raises WeightsError for unknown names.
        """
        places = self._find(tensors, "using")
        before = {name: getattr(*places[name][0]) for name in tensors}
        try:
            for name, new in tensors.items():
                _set(places[name], new)
            yield self
        finally:
            for name, old in before.items():
                _set(places[name], old)

    def load_weights(self, path, strict: bool = True) -> LoadReport:
        """Takes tensors by name from a weight file, in the module's own dtypes and on its engine; returns a report, a table when printed.

        Args:
            path: a file of `weights.save` or of another writer of safetensors.
            strict: the file holds what the module has, no more and no less; else what fits by name and shape is taken, and the rest of
                the module stays as it is.

        Raises WeightsError for a damaged file, for any difference if strict, else if nothing fits. Then nothing has changed.
        """
        own = self.tensors()
        found, _, _ = weights.load(path, device=next(iter(own.values())).device)
        report = weights.fit({name: (t.shape, t.dtype) for name, t in own.items()}, {name: (t.shape, t.dtype) for name, t in found.items()})
        if (strict and not report.whole) or not report.loaded:
            raise WeightsError(f"{path}: {'does not hold what the module has' if strict else 'nothing in it fits the module'}:\n{report}"
                               + ("\nload_weights(path, strict=False) takes what fits" if strict and report.loaded else ""))
        self.install({name: found[name].astype(own[name].dtype) for name in report.loaded})
        return report

    def freeze(self, *patterns: str):
        """Takes parameters out of training, by globs of their names or of the modules they are in; none given: all.

        `freeze("embedding", "blocks.0.*", "*.bias")`: what is frozen has no gradient and no place in an optimiser.

        Raises WeightsError, with near names, for a pattern that matches nothing; then nothing is frozen.
        """
        self._mark(patterns, True)

    def unfreeze(self, *patterns: str):
        """Puts frozen parameters back into training, by globs as `freeze` takes them."""
        self._mark(patterns, False)

    def to(self, device: str) -> Module:
        """Moves every tensor to another engine or device, in place, and returns the module."""
        for where in self.places().values():
            _set(where, getattr(*where[0]).to(device))
        return self

    def astype(self, dtype) -> Module:
        """Casts every floating-point tensor, in place, and returns the module."""
        for where in self.places().values():
            old = getattr(*where[0])
            if old.dtype.is_inexact:
                _set(where, old.astype(dtype))
        return self

    def _find(self, tensors, what: str) -> dict[str, list[tuple[Module, str]]]:
        places = self.places()
        for name in tensors:
            if name not in places:
                near = difflib.get_close_matches(name, places, 3, 0.6)
                hint = f"; did you mean {', '.join(near)}?" if near else f"; it has {', '.join(list(places)[:8])}, ..."
                raise WeightsError(f"{type(self).__name__}.{what}: has no tensor {name!r}{hint}")
        return places

    def _mark(self, patterns, frozen: bool):
        entries, hits = {name: (owner, attr) for name, owner, attr in self.entries() if not owner._is_buffer(attr)}, []
        for pattern in patterns or ("*",):
            names = matching(entries, pattern)
            if not names:
                raise WeightsError(f"{'freeze' if frozen else 'unfreeze'}: no parameter matches {pattern!r}; {near(pattern, entries)}")
            hits += names
        for name in hits:
            owner, attr = entries[name]
            marked = owner.__dict__.setdefault("_frozen", set())
            (marked.add if frozen else marked.discard)(attr)

    def _is_buffer(self, attr: str) -> bool:
        return attr in self.__dict__.get("_buffers", ())

    def _is_frozen(self, attr: str) -> bool:
        return attr in self.__dict__.get("_frozen", ())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.count():,} parameters)"


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The dotted names that a glob fits, or whose module it fits: "blocks.0" takes in "blocks.0.norm.weight"."""
    return [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]


def near(pattern: str, names: Iterable[str]) -> str:
    """What to say after a name or glob that fits nothing: the names, also of modules, that are like it, or the first ones."""
    every = dict.fromkeys(".".join(parts[:n]) for parts in (name.split(".") for name in names) for n in range(1, len(parts) + 1))
    like = difflib.get_close_matches(pattern, every, 3, 0.6)
    if like:
        return f"did you mean {', '.join(like)}?"
    known = [name for name, _ in zip(names, range(9))]
    return f"there are {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"


def _set(where: list[tuple[Module, str]], value: EmberTensor):
    for owner, attr in where:
        object.__setattr__(owner, attr, value)


def _modules(module: Module, name: str, seen: set[int]) -> Iterator[tuple[str, Module]]:
    if id(module) in seen:
        return
    seen.add(id(module))
    yield name, module
    for attr, value in list(module.__dict__.items()):
        if not attr.startswith("_") and not isinstance(value, EmberTensor):
            for child_name, child in _children(value, f"{name}.{attr}" if name else attr):
                yield from _modules(child, child_name, seen)


def _walk(module: Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, Module, str]]:
    """Every tensor in every place; modules once."""
    if id(module) in seen:
        return
    seen.add(id(module))
    for attr, value in list(module.__dict__.items()):
        if attr.startswith("_"):
            continue
        if isinstance(value, EmberTensor):
            yield prefix + attr, module, attr
        else:
            for name, child in _children(value, attr):
                yield from _walk(child, f"{prefix}{name}.", seen)


def _children(value, name: str) -> Iterator[tuple[str, Module]]:
    if isinstance(value, Module):
        yield name, value
    elif isinstance(value, EmberTensor):
        raise TypeError(f"module: {name} is a tensor in a list, tuple or dict, where updates cannot reach it; "
                        "make each an attribute of a module")
    elif isinstance(value, (list, tuple)):
        for i, v in enumerate(value):
            yield from _children(v, f"{name}.{i}")
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from _children(v, f"{name}.{k}")


for _name, _hint in _ELSEWHERE.items():
    setattr(Module, _name, Elsewhere(_name, _hint))
