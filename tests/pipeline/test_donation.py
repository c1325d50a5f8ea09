"""The trainer gives its old state away, so that an update may be written in its place: whatever anyone holds keeps its values."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.nn import optimizers
from ember_ml.nn.pipeline.training import Callback, RunFolder, Trainer, TrainingConfig, initial_state, make_step

ADAM = optimizers.AdamW(optimizers.AdamWConfig(rate=0.05, weight_decay=0.1))


class Scaled(nn.Module):
    """y = s (x W W) + b, with W in two places and a frozen b."""

    def __init__(self):
        self.w = em.tensor(np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32))
        self.twin = self.w
        self.s, self.b = em.tensor(np.float32(1.5)), em.tensor(np.ones(3, np.float32))
        self.buffer("before", em.tensor(np.float32(0.0)))
        self.freeze("b")

    def forward(self, x):
        return self.s * em.ops.matmul(em.ops.matmul(x, self.w), self.twin) + self.b


class Reporting(Scaled):
    """Tells its s and a view of W, and keeps s in a buffer."""

    def forward(self, x):
        nn.scope.add_metric("s", self.s)
        nn.scope.add_metric("row", self.w[0])
        nn.scope.update_buffer(self, "before", self.s.reshape(()))
        return super().forward(x)


def batch(i):
    return (np.random.default_rng(i).normal(size=(4, 3)).astype(np.float32),)


def loss(model, x):
    return em.ops.square(model(x)).mean()


def trainer(steps=8, loss=loss, optimizer=ADAM, callbacks=(), folder=None, evaluate=None, batch=batch, model=Scaled, **fields):
    return Trainer(model(), loss, optimizer, batch, TrainingConfig(**{"steps": steps, "log_every": 100, "compile": False, **fields}),
                   folder=folder, evaluate=evaluate, callbacks=callbacks)


def copied(tree):
    return [t.numpy() for t in em.tree.tensors(tree)]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


class Look(Callback):
    """Keeps what there is to see after each update, beside copies."""

    def __init__(self):
        self.seen = []

    def start(self, trainer):
        self.trainer = trainer
        self.step({})

    def step(self, row):
        state = self.trainer.state
        self.seen.append((state, copied(state)))


@pytest.mark.parametrize("fields", [{}, {"ema": 0.7}, {"accumulate": 2}, {"clip": 0.01}, {"model": Reporting}])
def test_trains_as_the_pure_step_does(backend, fields):
    given = trainer(**fields)
    given.train()
    looked = trainer(callbacks=[Look()], **{**fields, "log_every": 1})      # a state that is looked at is never given away
    looked.train()
    assert equal(copied(given.state), copied(looked.state))
    assert all(equal(copied(state), copies) for state, copies in looked.callbacks[0].seen)
    assert not equal(copied(looked.callbacks[0].seen[0][0]["params"]), copied(given.state["params"]))


@pytest.fixture
def torch():
    found = pytest.importorskip("torch", reason="torch is not installed; it is the engine that writes in place")
    with em.using("torch"):
        yield found


@pytest.mark.parametrize("fields", [{}, {"ema": 0.7}, {"accumulate": 2}])
def test_updates_are_written_in_place_on_torch(torch, fields):
    places = []

    def watched(i):
        places.append([t.data.data_ptr() for tree in (t._state["params"], t._state["optimizer"]["m"], t._state["optimizer"]["v"]) for t in tree.values()])
        return batch(i)

    t = trainer(batch=watched, **fields)
    t.train()
    many = fields.get("accumulate", 1)
    first, second, *rest = places[::many]
    assert not set(first[:2]) & set(second) and all(place == second for place in rest)      # the first state shares the model's tensors


def test_what_the_model_reports_and_keeps_is_that_of_its_update(torch):
    """A metric or buffer that is a parameter, or a view of one, tells its value before the update."""
    rows = nn.pipeline.training.Rows()
    t = trainer(model=Reporting, callbacks=[rows], log_every=1)
    states = []
    t.batch = lambda i: states.append(copied((t._state["params"]["s"], t._state["params"]["w"], t._state["buffers"]))) or batch(i)
    t.train()
    assert [row["s"] for row in rows.rows] == [s.item() for s, _, _ in states]
    assert all(row["row"] == w[0].tolist() for row, (_, w, _) in zip(rows.rows, states))
    assert [before.item() for *_, before in states][1:] == [s.item() for s, _, _ in states][:-1]


def test_what_a_loss_keeps_aside_stays(torch):
    kept = []

    def keeping(model, x):
        kept.append((model.w, model.w.numpy(), model.w[1], em.ops.square(model.w).sum()))
        return loss(model, x)

    trainer(loss=keeping).train()
    assert len({w.numpy().tobytes() for w, *_ in kept}) == 8
    assert all(equal([w.numpy(), row.numpy()], [copy, copy[1]]) for w, copy, row, _ in kept)


def test_the_model_keeps_what_was_installed(torch):
    """Evaluated weights, the best ones, and those from before stay as they were, whatever is trained afterwards."""
    start, judged = Scaled().tensors(), []
    scores = iter([3.0, 1.0, 2.0, 4.0])

    def evaluate(model):
        judged.append((model.tensors(), copied(model.tensors())))
        return {"score": next(scores)}

    t = trainer(evaluate=evaluate, eval_every=2, final="best")
    before, parts = t.model.tensors(), copied(t.model.tensors())
    t.train()
    assert all(equal(copied(held), copies) for held, copies in judged) and equal(copied(before), parts) and equal(parts, copied(start))
    assert equal(copied(t.model.tensors()), judged[1][1]) and not equal(judged[1][1], judged[0][1])
    assert t.model.w is t.model.twin and np.array_equal(t.model.b.numpy(), np.ones(3))


def test_a_nan_reaches_nothing_that_is_held(torch):
    t = trainer(batch=lambda i: (batch(i)[0] * np.float32(np.nan if i == 5 else 1),), evaluate=lambda m: {"score": 0.0}, eval_every=4)
    with pytest.raises(FloatingPointError, match="loss of update 6 is nan"):
        t.train()
    other = trainer(4)
    other.train()
    assert equal(copied(t.model.tensors()), copied(other.model.tensors()))           # as evaluated last


def test_an_optimiser_that_knows_no_donation(torch):
    class Lookahead(optimizers.AdamW):
        """Every second update goes half the way back to where the last but one ended; the state holds the parameters themselves."""

        def slots(self, params):
            return {**super().slots(params), "slow": params}

        def update(self, params, grads, state):
            fast, after = super().update(params, grads, state)
            slow = state["slow"]
            if after["step"].item() % 2 == 0:
                fast = slow = {k: slow[k] + (p - slow[k]) * 0.5 for k, p in fast.items()}
            return fast, {**after, "slow": slow}

    t = trainer(optimizer=Lookahead(optimizers.AdamWConfig(rate=0.05)))
    t.train()
    state, step = initial_state(Scaled(), t.optimizer, em.random.key(0)), make_step(Scaled(), loss, t.optimizer, clip=1.0)
    for i in range(8):
        state, _ = step(state, tuple(em.tensor(a) for a in batch(i)))
    assert equal(copied(state["params"]), copied(t.state["params"]))


def test_an_update_that_is_cut_short_leaves_no_state(torch, tmp_path):
    class Cut(optimizers.AdamW):
        at = None

        def update(self, params, grads, state, donate=False):
            done = super().update(params, grads, state, donate)
            if donate and done[1]["step"].item() == self.at:
                self.at = None
                raise KeyboardInterrupt                       # as a second Ctrl-C may
            return done

    cut = Cut(optimizers.AdamWConfig(rate=0.05))
    straight = trainer(optimizer=cut)
    straight.train()
    cut.at = 6
    t = trainer(optimizer=cut, folder=RunFolder(tmp_path), checkpoint_every=3)
    with pytest.raises(KeyboardInterrupt):
        t.train()
    for use in (t.train, lambda: t.state, t.install):
        with pytest.raises(RuntimeError, match="its last update was cut short and left no state; resume"):
            use()
    t.resume()
    t.train()
    assert equal(copied(t.state), copied(straight.state))
    nothing = trainer(optimizer=cut, folder=RunFolder(tmp_path / "none"))
    cut.at = 2
    with pytest.raises(KeyboardInterrupt):
        nothing.train()
    with pytest.raises(RuntimeError, match="a new trainer begins anew"):
        nothing.resume()


def test_a_batch_that_fails_takes_nothing_away(torch):
    t = trainer(batch=lambda i: batch(i) if i < 5 or mended else (np.zeros((4, 2), np.float32),))
    mended = []
    with pytest.raises(em.ShapeError):
        t.train()
    assert t.progress.step == 5
    mended.append(True)
    t.train()
    straight = trainer()
    straight.train()
    assert equal(copied(t.state), copied(straight.state))


def test_the_step_asks_before_it_takes(backend):
    """Without donate the step is pure; with it the old dict is empty where an engine may have written over it."""
    model = Scaled()
    step, state = make_step(model, loss, ADAM), initial_state(model, ADAM, em.random.key(0))
    x = tuple(em.tensor(a) for a in batch(0))
    before = copied(state)
    one, _ = step(state, x)
    two, _ = step(state, x)
    assert equal(copied(state), before) and equal(copied(one), copied(two))
    want, _ = step(one, x)
    got, _ = step(two, x, donate=True)
    assert not two and equal(copied(got), copied(want)) and not equal(copied(one), copied(want))
