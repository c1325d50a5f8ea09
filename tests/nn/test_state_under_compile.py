"""State in a compiled step: dropout keys, optimiser state, a balance bias that training moves, metrics.

One update of the tiny model is compiled whole (gradient and optimiser included) on MLX and torch, and held against the
same update run eagerly there and on NumPy.
"""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.nn.pipeline.training.step import initial_state, make_step
from tests.conftest import require_engine
from tests.nn import _tiny
from tests.nn._help import same_trees

UPDATES = 4
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")


def train(engine, compiled: bool, updates: int = UPDATES):
    """(states after each update, metrics of each update, the compiled or plain step, the model)."""
    require_engine(engine)
    with em.using(engine):
        model, optimizer = _tiny.model(), _tiny.optimizer()
        step = make_step(model, _tiny.loss, optimizer, clip=1.0)
        step = em.compile(step) if compiled else step
        state, states, metrics = initial_state(model, optimizer, em.random.key(5)), [], []
        for i in range(updates):
            state, row = step(state, _tiny.batch(i))
            states.append(state)
            metrics.append(row)
    return states, metrics, step, model


@pytest.fixture(scope="module")
def runs():
    """Eager and compiled runs, each made once."""
    made = {}

    def run(engine, compiled=False):
        if (engine, compiled) not in made:
            made[engine, compiled] = train(engine, compiled)
        return made[engine, compiled]
    return run


@pytest.fixture(params=["mlx", "torch"])
def engine(request):
    if request.param == "torch":
        compiles = pytest.importorskip("ember_ml.backend.torch.runtime").can_compile()
        if not compiles:
            pytest.skip("torch.compile needs a C++ compiler (g++ or clang)")
    return request.param


def test_compiled_is_eager(engine, runs):
    states, metrics, _, _ = runs(engine, True)
    want_states, want_metrics, _, _ = runs(engine)
    for i in range(UPDATES):
        allowed = 1e-4 if i == 0 else 1e-3                 # later updates start from states that already differ in rounding
        same_trees(metrics[i], want_metrics[i], allowed, f"metrics of update {i}")
        same_trees(states[i], want_states[i], allowed, f"state after update {i}")


def test_compiled_is_numpy(engine, runs):
    states, metrics, _, _ = runs(engine, True)
    want_states, want_metrics, _, _ = runs("numpy")
    reported = {f"{_tiny.ROUTER}.{name}" for name in ("load", "load_cv", "dead", "entropy", "coactivation")}
    assert [set(m) for m in metrics] == [{"loss", "rate", "grad_norm"} | reported] * UPDATES
    for i in range(UPDATES):
        same_trees({k: metrics[i][k] for k in want_metrics[i]}, want_metrics[i], 1e-3, f"metrics of update {i}")
        assert states[i]["buffers"][_tiny.BIAS].tolist() == want_states[i]["buffers"][_tiny.BIAS].tolist()
    same_trees(states[-1], want_states[-1], 1e-3)


def test_all_state_moves(engine, runs):
    states, metrics, _, model = runs(engine, True)
    params = model.parameters()
    stuck = [k for k in params if states[-1]["params"][k].tolist() == params[k].tolist()]
    assert stuck == []
    biases = [s["buffers"][_tiny.BIAS].numpy() for s in states]
    assert biases[0].any() and any((a != b).any() for a, b in zip(biases, biases[1:]))
    assert states[-1]["optimizer"]["step"].item() == UPDATES
    assert states[-1]["key"].tolist() == [0, 5]
    assert all(0.0 <= m[_tiny.LOAD].item() <= 3 ** 0.5 for m in metrics)


def test_the_compiled_step_is_pure(engine, runs):
    states, _, step, model = runs(engine, True)
    before = [t.tolist() for t in em.tree.tensors(states[0])]
    with em.using(engine):
        first, second, other = (step(states[0], _tiny.batch(i)) for i in (1, 1, 2))
    assert [t.tolist() for t in em.tree.tensors(first)] == [t.tolist() for t in em.tree.tensors(second)]
    assert [t.tolist() for t in em.tree.tensors(first)] != [t.tolist() for t in em.tree.tensors(other)]
    assert [t.tolist() for t in em.tree.tensors(states[0])] == before
    with em.using(engine):
        same_trees(model.tensors(), _tiny.model().tensors(), 0.0)
    assert nn.scope.current() is None


def test_dropout_draws_anew_in_every_update(runs):
    """The same batch and parameters at another update: another key, another loss, the same on NumPy and compiled."""
    state = runs("numpy")[0][0]
    with em.using("numpy"):
        step = make_step(_tiny.model(), _tiny.loss, _tiny.optimizer())
        later = {**state, "optimizer": {**state["optimizer"], "step": state["optimizer"]["step"] + 1}}
        losses = [step(s, _tiny.batch(1))[1]["loss"].item() for s in (state, state, later)]
    assert losses[0] == losses[1] != losses[2]


def test_state_can_leave_and_return(engine, runs):
    """Through NumPy and back, as a checkpoint does: the next update is the same to the bit."""
    states, metrics, step, _ = runs(engine, True)
    with em.using(engine):
        back = em.tree.map(lambda t: em.tensor(t.numpy()), states[1])
        state, row = step(back, _tiny.batch(2))
    for got, want in ((state, states[2]), (row, metrics[2])):
        for name, t in em.tree.named(want).items():
            assert (em.tree.named(got)[name].numpy() == t.numpy()).all(), name


def test_torch_traces_the_whole_step_into_one_graph(runs):
    """Nothing of our Python reaches Dynamo: one graph, no break, whatever the layers do."""
    torch = pytest.importorskip("torch")
    from ember_ml.backend.torch.runtime import can_compile

    if not can_compile():
        pytest.skip("torch.compile needs a C++ compiler (g++ or clang)")
    counters = torch._dynamo.utils.counters
    counters.clear()
    torch._dynamo.reset()
    with em.using("torch"):
        layer = nn.layers.MLP(nn.layers.MLPConfig(4, 3), key=em.random.key(0))
        step = nn.value_and_grad(layer, lambda m, x: (nn.layers.dropout(m(x), 0.5) ** 2).mean())
        args = (layer.parameters(), layer.buffers(), em.random.key(1), em.random.normal(em.random.key(2), (5, 4)))
        loss_only = nn.value_and_grad(layer, lambda m, x: (nn.layers.dropout(m(x), 0.5) ** 2).mean(), compile=True)
        for compiled in (em.compile(step), loss_only):
            same_trees(compiled(*args)[1], step(*args)[1], 1e-5)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("engine_name", ["mlx", "torch"])
def test_another_shape_traces_again(engine_name):
    require_engine(engine_name)
    double = em.compile(lambda tree, factor: {"y": tree["x"] * factor, "n": tree["x"].shape[0]})
    with em.using(engine_name):
        for n in (3, 5, 3):
            out = double({"x": em.arange(n, dtype="float32")}, 2.0)
            assert out["y"].tolist() == (2.0 * np.arange(n)).tolist()
