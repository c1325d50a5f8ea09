"""Every sequence mixer says what was wrong with its input: which shape, engine or state it expected, and what came."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import BackendMismatch, ShapeError, UnsupportedDtype
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer
from ember_ml.registry import layers
from tests.conftest import require_engine
from tests.nn._help import put
from tests.nn._mixers import CONFIGS, build, inputs, mixers, start

every_layer = pytest.mark.parametrize("name", CONFIGS)


@every_layer
def test_inputs_of_another_shape(name):
    fields = CONFIGS[name][0]
    mixer, width = build(name, fields, "numpy"), fields["d_input"]
    x, state = inputs(fields, "numpy", "float32"), start(mixer, 2, "float32")
    shape = rf"forward: expected x of shape \(batch, length, d_input = {width}\), nothing empty; got"
    for bad in (x[0], x[None], put(np.ones((2, 5, width + 1)), engine="numpy")):
        for given in (None, state):
            with pytest.raises(ShapeError, match=shape):
                mixer(bad, given)
    for bad in (x[:, :1], x[0, 0], put(np.ones((2, width + 1)), engine="numpy")):
        with pytest.raises(ShapeError, match=rf"step: expected x of shape \(batch, d_input = {width}\), nothing empty; got"):
            mixer.step(bad, state)
    with pytest.raises(TypeError, match="expected x to be an EmberTensor, got ndarray; make one with em.tensor"):
        mixer(x.numpy())


@every_layer
def test_states_of_another_form_or_batch(name):
    fields = CONFIGS[name][0]
    mixer, x = build(name, fields, "numpy"), inputs(fields, "numpy", "float32")
    one, two = start(mixer, 1, "float32"), start(mixer, 2, "float32")
    for given, of in ((x[:1], two), (x, one)):
        for call in (lambda: mixer(given, of), lambda: mixer.step(given[:, 0], of)):
            with pytest.raises(ShapeError, match=f"expected a state of batch {len(given)}, as x is, got "):
                call()
    for bad in ({}, {"other": x}, [1, 2]):
        with pytest.raises(TypeError, match="expected a state of this layer, from initial_state"):
            mixer(x, bad)
    with pytest.raises(TypeError, match=r"step: expected a state, from initial_state\(batch\) or the position before; received None"):
        mixer.step(x[:, 0], None)


@every_layer
def test_states_of_no_batch_and_of_integers(name):
    mixer = build(name, CONFIGS[name][0], "numpy")
    for bad in (0, -1, 2.0):
        with pytest.raises(ShapeError, match=f"initial_state: expected a batch of at least 1, received {bad}"):
            mixer.initial_state(bad)
    with pytest.raises(UnsupportedDtype, match="initial_state: expected float32, .* received int32"):
        mixer.initial_state(2, "int32")


@every_layer
def test_inputs_and_states_of_another_engine(name):
    require_engine("torch")
    fields = CONFIGS[name][0]
    mixer, x = build(name, fields, "numpy"), inputs(fields, "numpy", "float32")
    with pytest.raises(BackendMismatch, match=r"expected x on numpy, where the layer is, got it on torch; .*x.to\('numpy'\)"):
        mixer(x.to("torch"))
    moved = em.tree.map(lambda t: t.to("torch"), start(mixer, 2, "float32"))
    with pytest.raises(BackendMismatch, match=r"expected the state on numpy, where x is, got .* on torch; .*em.tree.map"):
        mixer(x, moved)


def test_what_has_other_reasons_stays_as_it_is():
    class Own(SequenceMixer):
        def forward(self, x, state=None):
            raise KeyError("a fault of its own")

    with pytest.raises(KeyError, match="a fault of its own"):
        Own()(put(np.ones((1, 2, 3)), engine="numpy"))


def test_every_mixer_is_told_apart():
    assert all(issubclass(layers.get(name), SequenceMixer) for name in mixers())
