"""Module: names, ties, buffers, freezing, updates that change nothing when they are refused, temporary tensors."""

import pytest

import ember_ml as em
from ember_ml import nn, weights
from ember_ml.errors import ShapeError, WeightsError

pytestmark = pytest.mark.usefixtures("backend")


class Leaf(nn.Module):
    def __init__(self, value=0.0):
        self.weight = em.full((2,), value)
        self.buffer("mean", em.zeros((2,)))


class Tree(nn.Module):
    def __init__(self):
        self.first = Leaf(1.0)
        self.many = [Leaf(2.0), Leaf(3.0)]
        self.named = {"a": Leaf(4.0), "b": (Leaf(5.0),)}
        self.scale = em.ones((3,))
        self._hidden = em.ones((7,))
        self.number = 3


NAMES = ["first.weight", "many.0.weight", "many.1.weight", "named.a.weight", "named.b.0.weight", "scale"]


def values(module):
    return {name: t.tolist() for name, t in module.tensors().items()}


def test_names_are_dotted_paths_in_the_order_of_assignment():
    tree = Tree()
    assert list(tree.parameters()) == NAMES
    assert list(tree.buffers()) == [n.replace("weight", "mean") for n in NAMES[:-1]]
    assert list(tree.tensors())[:3] == ["first.weight", "first.mean", "many.0.weight"]
    assert tree.count() == 5 * 2 + 3


def test_a_buffer_stays_a_buffer_when_it_is_assigned_again():
    leaf = Leaf()
    leaf.mean = em.ones((2,))
    assert list(leaf.buffers()) == ["mean"] and list(leaf.parameters()) == ["weight"]


def test_a_module_that_hangs_twice_counts_once():
    tree = Tree()
    tree.again = tree.first
    assert list(tree.parameters()) == NAMES


def test_a_tied_tensor_has_one_name_and_stays_tied():
    tree = Tree()
    tree.named["a"].weight = tree.first.weight
    assert "named.a.weight" not in tree.parameters() and tree.count() == 4 * 2 + 3
    new = em.full((2,), 9.0)
    tree.update({"first.weight": new})
    assert tree.named["a"].weight is new
    with tree.using({"first.weight": em.full((2,), 8.0)}):
        assert tree.named["a"].weight.tolist() == [8.0, 8.0]
    assert tree.first.weight is new and tree.named["a"].weight is new


def test_the_gradient_of_a_tied_tensor_sums_its_uses():
    tree = Tree()
    tree.named["a"].weight = tree.first.weight
    run = nn.value_and_grad(tree, lambda m: (m.first.weight * 2.0 + m.named["a"].weight * 3.0).sum())
    _, grads = run(tree.parameters(), tree.buffers(), em.random.key(0))
    assert grads["first.weight"].tolist() == [5.0, 5.0]


def test_tied_tensors_move_together(backend):
    tree = Tree()
    tree.named["a"].weight = tree.first.weight
    tree.to("numpy")
    assert {t.backend.name for t in tree.tensors().values()} == {"numpy"}
    assert tree.named["a"].weight is tree.first.weight


def test_tensors_in_lists_are_refused():
    tree = Tree()
    tree.lost = [em.ones((1,))]
    with pytest.raises(TypeError, match="lost.0 is a tensor in a list"):
        tree.parameters()


def test_update_replaces():
    tree = Tree()
    tree.update({"many.1.weight": em.full((2,), 7.0), "many.1.mean": em.full((2,), 6.0)})
    assert tree.many[1].weight.tolist() == [7.0, 7.0] and tree.many[1].mean.tolist() == [6.0, 6.0]


@pytest.mark.parametrize("bad, error, message", [
    ({"many.1.wieght": (2,)}, WeightsError, r"Tree.update: has no tensor 'many.1.wieght'; did you mean many.1.weight"),
    ({"scale": (4,)}, ShapeError, r"expected scale of float32\[3\], got float32\[4\]"),
    ({"scale": ((3,), "int32")}, ShapeError, r"expected scale of float32\[3\], got int32\[3\]"),
])
def test_a_refused_update_changes_nothing(bad, error, message):
    tree = Tree()
    before = values(tree)
    shapes = {name: s if isinstance(s[0], tuple) else (s, "float32") for name, s in bad.items()}
    good = {"first.weight": em.full((2,), 5.0)}
    with pytest.raises(error, match=message):
        tree.update({**good, **{name: em.full(s, 1, dtype=d) for name, (s, d) in shapes.items()}})
    assert values(tree) == before


def test_using_restores_after_an_exception():
    tree = Tree()
    before = {name: t for name, t in tree.tensors().items()}
    with pytest.raises(RuntimeError, match="inside"):
        with tree.using({"first.weight": em.full((2,), 5.0), "scale": em.full((3,), 5.0)}):
            assert tree.scale.tolist() == [5.0] * 3
            raise RuntimeError("inside")
    assert all(t is before[name] for name, t in tree.tensors().items())


def test_using_refuses_unknown_names_before_it_changes_anything():
    tree = Tree()
    with pytest.raises(WeightsError, match="Tree.using: has no tensor 'scales'; did you mean scale"):
        with tree.using({"first.weight": em.full((2,), 5.0), "scales": em.ones((3,))}):
            pytest.fail("the body ran")
    assert tree.first.weight.tolist() == [1.0, 1.0]


def test_freeze_takes_globs_and_unfreeze_undoes_it():
    tree = Tree()
    tree.freeze("many.*", "named.b.0.weight")
    assert list(tree.parameters(trainable=True)) == ["first.weight", "named.a.weight", "scale"]
    assert list(tree.parameters()) == NAMES
    tree.unfreeze("many.1.*")
    assert list(tree.parameters(trainable=True)) == ["first.weight", "many.1.weight", "named.a.weight", "scale"]
    tree.freeze()
    assert tree.parameters(trainable=True) == {}


def test_freeze_takes_the_names_of_modules():
    tree = Tree()
    tree.freeze("many", "named.a", "sc*")
    assert list(tree.parameters(trainable=True)) == ["first.weight", "named.b.0.weight"]


@pytest.mark.parametrize("pattern, message", [("manny.*", "did you mean many"), ("frist", r"did you mean first"),
                                              ("zzz", r"there are first.weight, many.0.weight")])
def test_a_glob_that_matches_nothing_names_what_is_near_and_freezes_nothing(pattern, message):
    tree = Tree()
    with pytest.raises(WeightsError, match=f"no parameter matches {pattern!r}; {message}".replace("*", r"\*")):
        tree.freeze("first", pattern)
    assert list(tree.parameters(trainable=True)) == NAMES
    with pytest.raises(WeightsError, match="unfreeze: no parameter matches 'nmaed'; did you mean named"):
        tree.unfreeze("nmaed")


def test_what_is_frozen_has_no_gradient_and_no_place_in_the_optimizer():
    tree = Tree()
    tree.freeze("many", "scale")
    params = tree.parameters(trainable=True)
    _, grads = nn.value_and_grad(tree, lambda m: (m.scale.sum() * m.many[0].weight * m.first.weight + m.named["a"].weight
                                                  * m.named["b"][0].weight).sum())(params, tree.buffers(), em.random.key(0))
    state = nn.optimizers.Adam(nn.optimizers.AdamConfig()).init(params)
    kept = ["first.weight", "named.a.weight", "named.b.0.weight"]
    assert list(grads) == kept == list(state["m"]) == list(state["v"])
    assert grads["first.weight"].tolist() == [6.0, 6.0]


def test_what_fits_is_loaded_and_the_rest_told(tmp_path):
    tree, path = Tree(), tmp_path / "part.safetensors"
    weights.save(path, {"first.weight": em.full((2,), 7.0).astype("float16"), "many.0.weight": em.ones((3,)), "first.mean": em.ones((2,), "int32"),
                        "head.weight": em.ones((1,))})
    before = values(tree)
    with pytest.raises(WeightsError, match=r"(?s)does not hold what.*1 loaded, 8 missing, 1 surplus, 2 mismatched.*strict=False"):
        tree.load_weights(path)
    assert values(tree) == before
    report = tree.load_weights(path, strict=False)
    assert values(tree) == before | {"first.weight": [7.0, 7.0]} and tree.first.weight.dtype is em.float32
    assert report.loaded == ["first.weight"] and report.surplus == ["head.weight"] and not report.whole
    assert set(report.missing) == set(before) - {"first.weight", "first.mean", "many.0.weight"}
    lines = str(report).splitlines()
    assert lines[0] == "1 loaded, 8 missing, 1 surplus, 2 mismatched" and "surplus     'head.weight'" in lines
    assert "mismatched  'many.0.weight'" in lines[-1] and lines[-1].endswith("expected float32[2], got float32[3]")
    weights.save(path, {"head.weight": em.ones((1,))})
    with pytest.raises(WeightsError, match="nothing in it fits the module"):
        tree.load_weights(path, strict=False)


def test_a_file_of_all_tensors_is_loaded_whole(tmp_path):
    tree, path = Tree(), tmp_path / "whole.safetensors"
    want = {name: em.random.normal(em.random.key(i), t.shape) for i, (name, t) in enumerate(tree.tensors().items())}
    weights.save(path, want)
    assert tree.load_weights(path).whole
    assert values(tree) == {name: t.tolist() for name, t in want.items()}


def test_buffers_are_not_frozen_as_parameters():
    with pytest.raises(WeightsError, match="no parameter matches"):
        Tree().freeze("*.mean")


def test_repr_counts():
    assert repr(Tree()) == "Tree(13 parameters)"
