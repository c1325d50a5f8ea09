"""A registry: components by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator

from ember_ml.errors import ConfigError, RegistryError, show


class Registry:
    """Names for one kind of component. Each table (layers, blocks, models) is an instance: none sees another's names.

    Args:
        kind: what it holds, in the singular, for messages.
        module: imported before the first look-up, so that the components have registered themselves.
    """

    def __init__(self, kind: str, module: str | None = None):
        self.kind, self._module, self._table = kind, module, {}

    def register(self, name: str) -> Callable:
        """Class decorator: the class is found under `name`. Raises RegistryError if the name is taken."""
        def decorate(component):
            taken = self._table.get(name)
            if taken is not None and taken is not component:
                raise RegistryError(f"{self.kind} {name!r} is already registered by "
                                    f"{taken.__module__}.{taken.__qualname__}")
            self._table[name] = component
            return component
        return decorate

    def get(self, name: str):
        """The component. Raises RegistryError with the nearest names."""
        self._load()
        if not isinstance(name, str) or name not in self._table:
            near = difflib.get_close_matches(name, self._table, 3, 0.4) if isinstance(name, str) and len(name) < 100 else []
            hint = f"did you mean {', '.join(near)}? " if near else ""
            raise RegistryError(f"unknown {self.kind} {show(name)}: {hint}registered are {', '.join(sorted(self._table))}")
        return self._table[name]

    def instantiate(self, name: str, *args, key=None, **fields):
        """The component built from its config, which takes the positional and keyword fields.

        Args:
            name: registered name.
            args, fields: fields of the component's config, or one ready config.
            key: random key for its initial parameters; None draws from `em.random.seed`'s stream.

        Raises RegistryError for an unknown name or a component without a Config, ConfigError for fields that do not fit.
        """
        component = self.get(name)
        if not hasattr(component, "Config"):
            raise RegistryError(f"{self.kind} {name!r}: expected {component.__module__}.{component.__qualname__} to name its configuration; give it "
                                "`Config = ...`, a class made with @ember_ml.registry.config")
        if len(args) == 1 and not fields and isinstance(args[0], component.Config):
            return component(args[0], key=key)
        try:
            return component(component.Config(*args, **fields), key=key)
        except ConfigError as e:
            raise ConfigError(f"{self.kind} {name!r}: {e}") from None

    def names(self) -> list[str]:
        """All registered names in alphabetical order."""
        self._load()
        return sorted(self._table)

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _load(self):
        if self._module is not None:
            module, self._module = self._module, None
            __import__(module)
