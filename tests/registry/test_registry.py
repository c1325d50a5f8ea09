"""The registry: names, near names, doubles, and components built from their fields."""

import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError, RegistryError
from ember_ml.registry import Registry, blocks, config, layers, models


@config
class PointConfig:
    """x, y: numbers."""

    x: int
    y: int = 2


class Point:
    Config = PointConfig

    def __init__(self, config, key=None):
        self.config, self.key = config, key


def table():
    registry = Registry("thing")
    registry.register("point")(Point)
    return registry


def test_register_and_get():
    registry = table()
    assert registry.get("point") is Point and registry.names() == ["point"] and list(registry) == ["point"]
    assert "point" in registry and "line" not in registry


def test_a_component_without_a_config_is_told_how_to_have_one():
    registry = table()
    registry.register("bare")(type("Bare", (), {}))
    with pytest.raises(RegistryError, match=r"thing 'bare': expected .*\.Bare to name its configuration; give it `Config = "):
        registry.instantiate("bare", x=1)


def test_register_returns_the_class_and_takes_it_twice():
    registry = table()
    assert registry.register("point")(Point) is Point


def test_a_name_is_given_once():
    class Other(Point):
        pass

    registry = table()
    with pytest.raises(RegistryError, match=r"thing 'point' is already registered by .*test_registry.Point"):
        registry.register("point")(Other)
    assert registry.get("point") is Point


@pytest.mark.parametrize("name, message", [
    ("piont", "unknown thing 'piont': did you mean point[?] registered are point"),
    ("zzz", "unknown thing 'zzz': registered are point"),
    (None, "unknown thing None"),
])
def test_unknown_names_list_the_near_ones(name, message):
    with pytest.raises(RegistryError, match=message):
        table().get(name)


def test_registry_errors_are_lookup_errors():
    with pytest.raises(LookupError):
        table().get("line")


def test_instantiate_from_fields_or_a_ready_config():
    registry = table()
    for made in (registry.instantiate("point", 1), registry.instantiate("point", x=1),
                 registry.instantiate("point", PointConfig(1))):
        assert made.config == PointConfig(1, 2) and made.key is None
    assert registry.instantiate("point", 1, 5, key="k").config.y == 5
    assert registry.instantiate("point", 1, key="k").key == "k"


@pytest.mark.parametrize("args, fields, message", [
    ((), {}, "thing 'point': PointConfig: needs 'x'"),
    ((1,), {"why": 3}, "thing 'point': PointConfig: unknown key 'why'"),
    (("one",), {}, "thing 'point': PointConfig: x: expected a whole number; received 'one'"),
    ((1, 2, 3), {}, "thing 'point': PointConfig: takes 2 fields, x, y; received 3 after them"),
])
def test_fields_that_do_not_fit(args, fields, message):
    with pytest.raises(ConfigError, match=message):
        table().instantiate("point", *args, **fields)


def test_tables_do_not_see_each_other():
    assert "layer_norm" in layers and "layer_norm" not in models and "layer_norm" not in blocks
    assert models.get("hyena_dna") is nn.HyenaDNA and blocks.get("block") is nn.Block


def test_every_registered_component_has_a_config_and_a_docstring():
    for registry in (layers, blocks, models):
        for name in registry:
            component = registry.get(name)
            assert component.__doc__ and component.Config.__doc__, name


def test_layers_take_keys(backend):
    first, second, other = (layers.instantiate("dense", 4, key=em.random.key(s)) for s in (0, 0, 1))
    assert first.weight.tolist() == second.weight.tolist() != other.weight.tolist()


def test_layers_without_a_key_draw_from_the_seeded_stream(backend):
    em.random.seed(11)
    first, second = layers.instantiate("dense", 4), layers.instantiate("dense", 4)
    em.random.seed(11)
    assert layers.instantiate("dense", 4).weight.tolist() == first.weight.tolist() != second.weight.tolist()
