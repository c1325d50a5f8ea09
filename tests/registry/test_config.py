"""Configs: frozen, checked, with messages that name the key, what came, and what was meant."""

import dataclasses

import pytest

from ember_ml.errors import ConfigError
from ember_ml.registry import Rate, Size, config, from_dict, to_dict


@config
class InnerConfig:
    """width: a length. rate: a probability."""

    width: Size
    rate: Rate = 0.5


@config
class OuterConfig:
    """inner: one. many: a list. maybe: one or None. name: a string."""

    inner: InnerConfig
    many: list[InnerConfig] = dataclasses.field(default_factory=list)
    maybe: InnerConfig | None = None
    name: str = "outer"


def test_configs_are_frozen_and_equal_by_value():
    made = InnerConfig(3)
    assert made == InnerConfig(width=3, rate=0.5) != InnerConfig(4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.width = 5


def test_dicts_become_configs_and_go_back():
    values = {"inner": {"width": 1, "rate": 0.0}, "many": [{"width": 2, "rate": 0.25}], "maybe": None, "name": "x"}
    made = from_dict(OuterConfig, values)
    assert made.inner == InnerConfig(1, 0.0) and made.many == [InnerConfig(2, 0.25)]
    assert to_dict(made) == values and from_dict(OuterConfig, to_dict(made)) == made


def test_to_dict_makes_plain_values():
    assert to_dict({1: (InnerConfig(2), "a")}) == {"1": [{"width": 2, "rate": 0.5}, "a"]}


@pytest.mark.parametrize("values, message", [
    ({}, "OuterConfig: needs 'inner'$"),
    ({"inner": {}}, r"OuterConfig: needs 'inner\.width'$"),
    ({"inner": {"width": 1}, "nmae": "x"}, "unknown key 'nmae'; did you mean name, maybe, many[?]"),
    ({"inner": {"width": 1}, "zzz": 1}, "unknown key 'zzz'; it takes inner, many, maybe, name"),
    ({"inner": {"width": 1, "wdith": 2}}, r"unknown key 'inner\.wdith'; did you mean width[?]"),
    ({"inner": {"width": 1}, "many": [{"width": 1}, {"width": 1, "rtae": 0}]},
     r"unknown key 'many\.1\.rtae'; did you mean rate[?]"),
    ({"inner": {"width": 1}, "maybe": {"width": 1, "zzz": 0}}, r"unknown key 'maybe\.zzz'; it takes width, rate"),
    ({"inner": {"width": 1}, "many": {"width": 1}}, "many: expected a list; received"),
    ({"inner": {"width": "wide"}}, r"inner\.width: expected a whole number; received 'wide'"),
    ({"inner": {"width": 1.5}}, r"inner\.width: .*received 1\.5"),
    ({"inner": {"width": 0}}, r"inner\.width: expected a number of at least 1; received 0"),
    ({"inner": {"width": 1, "rate": 1}}, r"inner\.rate: expected a number below 1\.0; received 1"),
    ({"inner": {"width": 1}, "name": 3}, "name: expected a string; received 3"),
    ({"inner": 3}, "inner: .*received 3"),
    ({"inner": {"width": -1, "rate": 2.0}}, r"inner\.width: .*received -1; inner\.rate: .*received 2\.0"),
    ("inner", "OuterConfig: expected a table of inner, many, maybe, name; received 'inner'"),
])
def test_messages(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(OuterConfig, values)


def test_a_check_of_a_config_speaks_for_itself():
    @config
    class CheckedConfig:
        """low, high: in order."""

        low: int
        high: int

        def __post_init__(self):
            if self.low > self.high:
                raise ConfigError(f"checked: expected low <= high, received {self.low} and {self.high}")

    @config
    class AroundConfig:
        """many: some."""

        many: list[CheckedConfig]

    with pytest.raises(ConfigError, match="^CheckedConfig: checked: expected low <= high, received 2 and 1$"):
        CheckedConfig(2, 1)
    with pytest.raises(ConfigError, match=r"^AroundConfig: many\.1: checked: expected low <= high, received 2 and 1$"):
        AroundConfig([{"low": 1, "high": 1}, {"low": 2, "high": 1}])


def test_positional_arguments_are_named_in_messages():
    with pytest.raises(ConfigError, match="InnerConfig: rate: expected a number below 1\\.0; received 7"):
        InnerConfig(3, 7)
    with pytest.raises(ConfigError, match="InnerConfig: takes 2 fields, width, rate; received 1 after them"):
        InnerConfig(3, 0.5, 1)


def test_config_errors_are_value_errors():
    with pytest.raises(ValueError):
        InnerConfig(0)
