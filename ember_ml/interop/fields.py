"""The fields of an original configuration, taken one by one and checked: what Ember would compute differently is an error, not a surprise."""

from __future__ import annotations

from typing import Any

from ember_ml.errors import ConfigError, show

#: names of activations in transformers -> Ember's
ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
               "tanh": "tanh", "sigmoid": "sigmoid"}

SPECIAL = {"Infinity": float("inf"), "-Infinity": float("-inf")}

#: lengths and counts go so far; a config that says otherwise is damaged or hostile
LARGEST = (1 << 31) - 1


class Fields:
    """A table of a configuration.

    Args:
        values: the plain values. family: what to call it in messages.

    Raises ConfigError if it is no table.
    """

    def __init__(self, values: dict[str, Any], family: str):
        if not isinstance(values, dict):
            raise ConfigError(f"{family}: expected a table; received {show(values)}")
        self.values, self.family = values, family

    def table(self, name: str) -> Fields:
        """The table of that name, empty where it is missing or null."""
        return Fields(self.get(name, {}), f"{self.family}'s {name}")

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or the default where it is missing or null."""
        value = self.values.get(name)
        return default if value is None else _plain(value)

    def size(self, name: str, default: int | None = None, most: int = LARGEST) -> int:
        """A length or count of at least 1."""
        value = self.get(name, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self._wrong(name, f"a number from 1 to {most}", value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
            raise self._wrong(name, "a finite number", value)
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def numbers(self, name: str, count: int, default: list[float], most: float = 1e30) -> list[float]:
        """`count` numbers of at most so much."""
        value = self.get(name, default)
        if not isinstance(value, (list, tuple)) or len(value) != count or not all(type(v) in (int, float) and abs(v) <= most for v in value):
            raise self._wrong(name, f"{count} numbers", value)
        return [float(v) for v in value]

    def layers(self, name: str = "num_hidden_layers") -> int:
        """How many layers there are: at most some thousands."""
        return self.size(name, most=4000)

    def places(self, name: str, default: list[int] | None = None) -> set[int]:
        """A list of layers, counted from 0."""
        value = self.get(name, default)
        if not isinstance(value, list) or not all(type(i) is int for i in value):
            raise self._wrong(name, "a list of layers", value)
        return set(value)

    def word(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self.get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "a string", value)
        return value

    def activation(self, name: str = "hidden_act", default: str = "silu") -> str:
        """Ember's name of an activation."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self._wrong(name, f"one of {', '.join(ACTIVATIONS)}", value)
        return ACTIVATIONS[value]

    def only(self, name: str, *allowed: Any):
        """Refuses values for which Ember has no equal layer. The first allowed value is the default."""
        value = self.get(name, allowed[0])
        if value not in allowed:
            raise self._wrong(name, f"{' or '.join(map(repr, allowed))}, which Ember computes alike", value)

    def kinds(self, name: str, count: int, *allowed: str) -> list[str]:
        """One of the allowed words for each layer."""
        value = self.get(name)
        if not isinstance(value, list) or len(value) != count or any(v not in allowed for v in value):
            raise self._wrong(name, f"{count} of {', '.join(allowed)}", value)
        return value

    def heads(self, default_head_dim: bool = True) -> dict[str, int]:
        """heads, kv_heads and head_dim, as SelfAttentionConfig takes them."""
        heads = self.size("num_attention_heads")
        width = self.size("head_dim", self.size("hidden_size") // heads or 1)
        return {"heads": heads, "kv_heads": self.size("num_key_value_heads", heads), "head_dim": width}

    def rope(self, head_dim: int, base: float = 10000.0, partial: float = 1.0) -> dict[str, Any]:
        """RoPEConfig's fields, from rope_parameters, or from rope_theta and rope_scaling of older files."""
        old = {**self.table("rope_scaling").values, "rope_theta": self.get("rope_theta", base)}
        f = Fields(self.get("rope_parameters") or old, f"{self.family}'s rope_parameters")
        kind = f.get("rope_type", f.get("type", "default"))
        share = f.number("partial_rotary_factor", self.number("partial_rotary_factor", partial))
        turns: dict[str, Any] = {"base": f.number("rope_theta", base)}
        if share != 1.0:
            turns["dims"] = int(head_dim * share)
        if kind == "linear":
            turns["scale"] = f.number("factor")
        elif kind == "llama3":
            turns["llama3"] = {"factor": f.number("factor"), "low_freq_factor": f.number("low_freq_factor"),
                               "high_freq_factor": f.number("high_freq_factor"),
                               "original": f.size("original_max_position_embeddings", self.size("max_position_embeddings", 2048))}
        elif kind != "default":
            raise f._wrong("rope_type", "default, linear or llama3", kind)
        return turns

    def _wrong(self, name: str, expected: str, value: Any) -> ConfigError:
        return ConfigError(f"{self.family}: expected {name} to be {expected}; received {show(value)}")


def _plain(value: Any) -> Any:
    """A value with the numbers that JSON lacks, which transformers writes as {"__float__": "Infinity"}."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return SPECIAL.get(value.get("__float__"), value) if isinstance(value, dict) and len(value) == 1 else value
