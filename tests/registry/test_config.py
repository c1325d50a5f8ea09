"""Configs: frozen, checked, with messages that name the key, what came, and what was meant."""

import dataclasses
import math

import numpy as np
import pytest

from ember_ml.errors import ConfigError
from ember_ml.registry import Rate, Size, config, from_dict, read_table, to_dict


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


@pytest.mark.parametrize("given, message", [
    ("8", "width: expected a whole number; received '8', a string: leave the quotes out"), ("wide", "width: expected a whole number; received 'wide'$"),
    (8.0, "width: expected a whole number; received 8.0: write it without a point or exponent"), (8.5, "received 8.5$"), (True, "a whole number; received True"),
    (None, "a whole number; received None"), (math.nan, "a whole number; received nan"), (2 ** 31, "a number below 2147483648; received 2147483648"),
    pytest.param(16 ** 6000, "a number below 2147483648; received a number of 24,001 bits", id="long"), ([8], r"a whole number; received \[8\]")])
def test_nothing_is_taken_for_a_whole_number(given, message):
    with pytest.raises(ConfigError, match=f"InnerConfig: {message}" if message.startswith("width") else message):
        InnerConfig(given)


@pytest.mark.parametrize("given, message", [("0.5", "expected a number; received '0.5', a string: leave the quotes out"), (True, "expected a number; received True"),
                                            (math.nan, "expected a finite number; received nan"), (math.inf, "expected a finite number; received inf")])
def test_nothing_is_taken_for_a_number(given, message):
    with pytest.raises(ConfigError, match=f"rate: {message}"):
        InnerConfig(1, given)


def test_numbers_of_array_libraries_and_whole_numbers_for_others_are_fine():
    made = InnerConfig(np.int64(3), 0)
    assert (made.width, type(made.width), made.rate, type(made.rate)) == (3, int, 0.0, float)
    assert type(InnerConfig(np.uint8(3), np.float32(0.5)).rate) is float


@config
class ChoiceConfig:
    """rate: a number or a table. files: a string or some. on: a switch. pair: two numbers."""

    rate: InnerConfig | float = 0.5
    files: str | list[str] | None = None
    on: bool = True
    pair: tuple[float, float] | None = None


@pytest.mark.parametrize("values, message", [
    ({"rate": "1e-3"}, "rate: expected a table of width, rate or a number; received '1e-3', a string: leave the quotes out$"),
    ({"rate": {"width": "x"}}, "ChoiceConfig: rate.width: expected a whole number; received 'x'$"),
    ({"rate": {"wdth": 3}}, "needs 'rate.width'; unknown key 'rate.wdth'; did you mean width"),
    ({"files": 3}, "files: expected a string or a list; received 3$"), ({"files": ["a", 3]}, "ChoiceConfig: files.1: expected a string; received 3$"),
    ({"on": "true"}, "on: expected true or false; received 'true', a string: leave the quotes out"), ({"on": 1}, "on: expected true or false; received 1"),
    ({"pair": [1, 2, 3]}, "pair: expected a list of at most 2; received"), ({"pair": [1]}, "needs 'pair.1'"), ({"pair": ["1", 2]}, "pair.0: expected a number"),
    ({3: 4}, "ChoiceConfig: expected a table of rate, files, on, pair; received {3: 4}"),
])
def test_alternatives_are_told_together(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(ChoiceConfig, values)


def test_tables_in_tables_have_an_end():
    deep: dict = {"width": 1}
    for _ in range(2000):
        deep = {"inner": deep}
    around: dict = {"width": 1}
    around["rate"] = {"inner": around}
    for values in (deep, around):
        with pytest.raises(ConfigError, match="OuterConfig: expected tables and lists of at most 32 levels, received more, or one that holds itself"):
            from_dict(OuterConfig, {"inner": values})


def test_many_problems_make_a_short_message():
    with pytest.raises(ConfigError, match=r"many\.4\.width: .*; and 995 more$") as caught:
        OuterConfig(InnerConfig(1), [{"width": "x" * 1000}] * 1000)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("text, message", [
    (".".join(["a"] * 100_000) + " = 1", "expected keys of a few parts, got one of more than 64"),
    ("a = " + "[" * 100_000, "is no TOML"), ("a = 0x" + "f" * 10_000, None), ("x = '" + "a." * 30 + "'", None)])
def test_a_file_cannot_keep_its_reader_busy(text, message, tmp_path):
    (tmp_path / "c.toml").write_text(text)
    if message is None:
        assert read_table(tmp_path / "c.toml")
    else:
        with pytest.raises(ConfigError, match=f"c.toml: {message}"):
            read_table(tmp_path / "c.toml")
