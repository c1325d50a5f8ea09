"""A file that does not fit is one error that lists all differences, and nothing is changed."""

import re

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn, weights
from ember_ml.errors import WeightsError


def described(tensors: dict) -> dict:
    return {name: (t.shape, t.dtype) for name, t in tensors.items()}


HELD = {"blocks.0.weight": ((3, 4), em.float32), "blocks.0.bias": ((4,), em.float32), "steps": ((), em.int32)}


def test_what_fits_passes():
    assert weights.check(HELD, dict(reversed(HELD.items())), "w") is None


@pytest.mark.parametrize("change, message", [
    ({"blocks.0.bias": None}, "1 missing: 'blocks.0.bias'$"),
    ({"extra": ((1,), em.int8)}, "1 surplus: 'extra'$"),
    ({"blocks.0.weight": ((4, 3), em.float32)}, r"another shape: 'blocks.0.weight' expected \[3, 4\], got \[4, 3\]$"),
    ({"steps": ((1,), em.int32)}, r"1 of another shape: 'steps' expected \[\], got \[1\]$"),
    ({"blocks.0.bias": ((4,), em.bfloat16)}, "1 of another dtype: 'blocks.0.bias' expected float32, got bfloat16$"),
    ({"blocks.0.bias": None, "blocks.0.bais": ((4,), em.float32)},
     r"1 missing: 'blocks.0.bias' \(the file has 'blocks.0.bais'\)\n  1 surplus: 'blocks.0.bais'$"),
])
def test_a_difference_is_named(change, message):
    found = {name: entry for name, entry in (HELD | change).items() if entry is not None}
    with pytest.raises(WeightsError) as caught:
        weights.check(HELD, found, "dir/w.safetensors")
    head, _, lines = str(caught.value).partition("\n  ")
    assert head == "dir/w.safetensors: its tensors are not those of the model:"
    assert re.search(message, lines), lines


def test_all_differences_are_in_one_error_and_the_long_lists_are_cut():
    expected = {f"layer.{i}.weight": ((2,), em.float32) for i in range(100)} | {"a": ((1,), em.float32)}
    found = {f"other{i}": ((2,), em.float32) for i in range(70)} | {"a": ((2,), em.int8)}
    with pytest.raises(WeightsError) as caught:
        weights.check(expected, found, "w")
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["100 missing", "70 surplus", "1 of another shape",
                                                               "1 of another dtype"]
    assert lines[0].count("layer") == 5 and lines[0].endswith("; ...") and lines[1].count("other") == 5


def test_many_and_long_names_make_no_long_message():
    found = {str(i) * 100_000: ((1,), em.int8) for i in range(10)} | {f"n{i}": ((1,), em.int8) for i in range(100_000)}
    with pytest.raises(WeightsError) as caught:
        weights.check(HELD, found, "w")
    assert len(str(caught.value)) < 2000


class Affine(nn.Module):
    def __init__(self):
        self.weight = em.tensor([[1.0, 2.0]])
        self.bias = em.tensor([3.0])
        self.buffer("seen", em.tensor(4))


@pytest.mark.parametrize("change", [
    {"weight": [[1.0], [2.0]]}, {"bias": [1]}, {"bias": None}, {"surplus": [1.0]}, {"seen": None, "sean": 4},
])
def test_a_file_that_does_not_fit_changes_no_module(change, backend, tmp_path):
    module, path = Affine(), tmp_path / "w"
    wrong = {"weight": [[9.0, 9.0]], "bias": [9.0], "seen": 9} | change
    weights.save(path, {name: em.tensor(v) for name, v in wrong.items() if v is not None})
    before = module.tensors()
    with pytest.raises(WeightsError, match=str(path)):
        found, _, _ = weights.load(path)
        weights.check(described(before), described(found), path)
        module.update(found)
    assert all(module.tensors()[name] is t for name, t in before.items())


def test_a_file_that_fits_is_taken_over(backend, tmp_path):
    module, path = Affine(), tmp_path / "w"
    weights.save(path, {"seen": em.tensor(7), "weight": em.tensor([[5.0, 6.0]]), "bias": em.tensor([8.0])})
    found, _, _ = weights.load(path)
    weights.check(described(module.tensors()), described(found), path)
    module.update(found)
    assert module.weight.tolist() == [[5.0, 6.0]] and module.bias.tolist() == [8.0] and module.seen.tolist() == 7


# Trees


def state(v: float) -> dict:
    moments = [{"m": em.tensor([v, v + 1]), "v": em.tensor([v + 2, v + 3])}]
    params = {"a.weight": em.tensor([[v]]), "b": (em.tensor(v), em.tensor([True]))}
    return {"params": params, "moments": moments, "none": []}


def test_a_tree_comes_back_in_its_form(backend, tmp_path):
    weights.save_tree(tmp_path / "w", state(5.0), {"lr": 0.1}, {"step": "3"})
    tree, config, metadata = weights.load_tree(tmp_path / "w", state(0.0))
    assert em.tree.map(lambda t: t.tolist(), tree) == em.tree.map(lambda t: t.tolist(), state(5.0))
    assert isinstance(tree["params"]["b"], tuple) and config == {"lr": 0.1} and metadata == {"step": "3"}
    names = {"params.a.weight", "params.b.0", "params.b.1", "moments.0.m", "moments.0.v"}
    assert weights.load(tmp_path / "w")[0].keys() == names


def test_a_tree_of_another_form_is_refused(backend, tmp_path):
    weights.save_tree(tmp_path / "w", state(5.0))
    template = state(0.0)
    template["moments"].append({"m": em.tensor([1.0])})
    with pytest.raises(WeightsError, match="1 missing: 'moments.1.m'"):
        weights.load_tree(tmp_path / "w", template)


@pytest.mark.parametrize("tree, message", [
    ({"a.b": em.zeros(1, device="numpy"), "a": {"b": em.zeros(1, device="numpy")}}, "two tensors have one dotted path"),
    ({"a": {"b": 3}}, r"tensor 'a.b': expected an EmberTensor, got int"),
    ([None], "tensor '0': expected an EmberTensor, got NoneType"),
])
def test_a_tree_that_would_lose_something_is_not_saved(tree, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        weights.save_tree(tmp_path / "w", tree)
    assert list(tmp_path.iterdir()) == []


def test_a_tie_within_a_tree_is_kept(backend, tmp_path):
    shared = em.tensor(np.ones(2, np.float32))
    weights.save_tree(tmp_path / "w", {"a": shared, "b": [shared]})
    tree, _, _ = weights.load_tree(tmp_path / "w", {"a": em.zeros(2), "b": [em.zeros(2)]})
    assert tree["a"] is tree["b"][0] and tree["a"].tolist() == [1.0, 1.0]
