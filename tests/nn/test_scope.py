"""The training scope: keys, auxiliary losses, metrics, buffers; and value_and_grad as a pure function of them."""

import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ShapeError, WeightsError

pytestmark = pytest.mark.usefixtures("backend")


class Counter(nn.Module):
    """y = a x; counts its calls in a buffer, and reports."""

    def __init__(self):
        self.a = em.tensor([2.0, 3.0])
        self.buffer("calls", em.zeros(()))

    def forward(self, x):
        y = self.a * x
        nn.update_buffer(self, "calls", self.calls + 1.0)
        nn.add_loss("size", (self.a * self.a).sum() * 0.5)
        nn.add_metric("largest", y.max())
        nn.add_metric("mean", y.mean(), self)
        return y


class Pair(nn.Module):
    def __init__(self):
        self.one, self.two = Counter(), Counter()

    def forward(self, x):
        return self.two(self.one(x))


def run(model, loss=lambda m, x: m(x).sum(), x=(1.0, 2.0), key=0):
    step = nn.value_and_grad(model, loss)
    return step(model.parameters(True), model.buffers(), em.random.key(key), em.tensor(list(x)))


def test_outside_a_scope_nothing_happens():
    model = Counter()
    assert model(em.tensor([1.0, 2.0])).tolist() == [2.0, 6.0]
    assert model.calls.item() == 0.0


def test_losses_metrics_and_buffers_are_outputs():
    out, grads = run(Counter())
    assert out.loss.item() == 8.0 + 6.5                        # 2 + 6, and (4 + 9) / 2
    assert {k: v.item() for k, v in out.metrics.items()} == {"loss": 8.0, "loss/size": 6.5, "largest": 6.0, "mean": 4.0}
    assert {k: v.item() for k, v in out.buffers.items()} == {"calls": 1.0}
    assert grads["a"].tolist() == [1.0 + 2.0, 2.0 + 3.0]


def test_equal_losses_add_up_and_module_metrics_keep_their_place():
    out, _ = run(Pair())
    assert out.metrics["loss/size"].item() == 13.0
    assert {"one.mean", "two.mean", "largest"} <= set(out.metrics)
    assert out.metrics["one.mean"].item() == 4.0 and out.metrics["two.mean"].item() == 11.0
    assert {k: v.item() for k, v in out.buffers.items()} == {"one.calls": 1.0, "two.calls": 1.0}


def test_the_step_is_pure():
    model = Pair()
    before = dict(model.tensors())
    params, buffers, key = model.parameters(True), model.buffers(), em.random.key(0)
    step = nn.value_and_grad(model, lambda m, x: m(x).sum())
    x = em.tensor([1.0, 2.0])
    first, second = step(params, buffers, key, x), step(params, buffers, key, x)
    assert [a.tolist() for a in em.tree.tensors(first)] == [b.tolist() for b in em.tree.tensors(second)]
    assert all(t is before[name] for name, t in model.tensors().items())
    assert nn.scope.current() is None


def test_parameters_and_buffers_come_from_the_arguments():
    model = Counter()
    step = nn.value_and_grad(model, lambda m, x: m(x).sum())
    out, _ = step({"a": em.tensor([1.0, 1.0])}, {"calls": em.tensor(41.0)}, em.random.key(0), em.tensor([1.0, 2.0]))
    assert out.loss.item() == 3.0 + 1.0 and out.buffers["calls"].item() == 42.0


def test_frozen_parameters_are_constants():
    model = Pair()
    model.freeze("one.*")
    _, grads = run(model)
    assert list(grads) == ["two.a"] and grads["two.a"].tolist() == [2.0 + 2.0, 6.0 + 3.0]


def test_no_gradient_flows_through_metrics_and_buffers():
    class Leaky(nn.Module):
        def __init__(self):
            self.a = em.tensor(3.0)
            self.buffer("state", em.zeros(()))

        def forward(self, x):
            nn.update_buffer(self, "state", self.a * 10.0)
            nn.add_metric("a", self.a)
            return self.a * x

    model = Leaky()
    step = nn.value_and_grad(model, lambda m, x: m(x).sum())

    def outer(params):
        out, _ = step(params, model.buffers(), em.random.key(0), em.tensor([1.0]))
        return out.metrics["a"] + out.buffers["state"] + 0.0 * out.loss

    assert em.grad(outer)(model.parameters())["a"].item() == 0.0


def test_keys_differ_within_a_step_and_repeat_between_steps():
    with nn.training(em.random.key(3)):
        first = [nn.next_key().tolist() for _ in range(3)]
    with nn.training(em.random.key(3)):
        again = [nn.next_key().tolist() for _ in range(3)]
    with nn.training(em.random.key(4)):
        other = [nn.next_key().tolist() for _ in range(3)]
    assert first == again and len({tuple(k) for k in first + other}) == 6


def test_scopes_nest_and_close_after_an_exception():
    with pytest.raises(KeyError):
        with nn.training(em.random.key(0)) as outer:
            with nn.training() as inner:
                nn.add_metric("m", em.ones(()))
            assert "m" in inner.metrics and outer.metrics == {} and nn.scope.current() is outer
            raise KeyError
    assert nn.scope.current() is None


@pytest.mark.parametrize("scope", [None, "no key"])
def test_next_key_says_how_to_open_a_scope(scope):
    message = "next_key: expected an open training scope with a key; use nn.value_and_grad"
    with pytest.raises(RuntimeError, match=message):
        if scope is None:
            nn.next_key()
        else:
            with nn.training():
                nn.next_key()


class Wrong(nn.Module):
    def __init__(self, attr, value):
        self.a = em.ones((2,))
        self.buffer("state", em.zeros((2,)))
        self._what = attr, value

    def forward(self, x):
        nn.update_buffer(self, *self._what)
        return self.a * x


@pytest.mark.parametrize("attr, shape, dtype, error, message", [
    ("state", (3,), "float32", ShapeError, r"expected state of float32\[2\], got float32\[3\]"),
    ("state", (2,), "int32", ShapeError, r"expected state of float32\[2\], got int32\[2\]"),
    ("a", (2,), "float32", WeightsError, r"expected a buffer of the model, got 'a', its parameter a"),
    ("other", (2,), "float32", WeightsError, r"expected a buffer of the model, got 'other'"),
])
def test_wrong_buffer_updates_are_refused(attr, shape, dtype, error, message):
    with pytest.raises(error, match=message):
        run(Wrong(attr, em.full(shape, 1, dtype=dtype)))
