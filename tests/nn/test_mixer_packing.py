"""Packed documents in every sequence mixer: those that can keep them apart do, the others say why not."""

from contextlib import nullcontext

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ShapeError
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer
from ember_ml.nn.packing import packed
from tests.nn._help import close, get, put
from tests.nn._mixers import PRECISIONS, build, every_mixer, inputs

#: two packed rows and what is in them: (first position in row 0, in row 1, length) of each pair of documents; the last three are padding
SEGMENTS = [[1] * 5 + [2] + [3] * 4 + [0] * 3, [1] + [2] * 5 + [3] * 4 + [0] * 3]
DOCUMENTS = [(0, 1, 5), (5, 0, 1), (6, 6, 4)]


def unpackable(name, fields) -> bool:
    """Whether a layer has to refuse packed rows: long filters and modes are applied to the whole row by one transform."""
    inner = fields.get("filter", {})
    return name in ("hyena", "fftconv", "long_conv") or (name == "gated_conv" and (inner["kind"] == "modal" or inner["taps"] > 32))


@pytest.mark.parametrize("engine, dtype, tolerance", [p for p in PRECISIONS if p.id in ("numpy-float64", "torch-float64", "mlx-float32")])
@every_mixer
def test_packed_documents_are_those_alone(name, fields, engine, dtype, tolerance):
    """Outputs, and the gradients of sum(w y) with respect to x and all parameters: packed, and summed over the documents by themselves."""
    mixer = build(name, fields, engine, dtype)
    segments = put(SEGMENTS, "int32", engine)
    if unpackable(name, fields):
        with pytest.raises(em.UnsupportedOp, match="cannot keep the documents of a row apart: its filter.* by one transform"):
            with packed(segments, mixer):
                pytest.fail("the body ran")
        return
    x, w = get(inputs(fields, engine, dtype)), get(inputs(fields, engine, dtype, seed=1))
    w[:, 10:] = 0.0

    def run(x, w, segments=None):
        def loss(params, x):
            with mixer.using(params), nullcontext() if segments is None else packed(segments, mixer):
                y, _ = mixer(x)
            return (y * put(w, dtype, engine)).sum(), y
        (_, y), (dp, dx) = em.value_and_grad(loss, (0, 1), has_aux=True)(mixer.parameters(), put(x, dtype, engine))
        return get(y), {k: get(g) for k, g in dp.items()}, get(dx)

    y, dp, dx = run(x, w, segments)
    total = {k: np.zeros_like(g) for k, g in dp.items()}
    for first, second, length in DOCUMENTS:
        def own(a):
            return np.stack([a[0, first:first + length], a[1, second:second + length]])
        y_alone, dp_alone, dx_alone = run(own(x), own(w))
        close(own(y), y_alone, tolerance, f"documents of {length}")
        close(own(dx), dx_alone, tolerance, f"slopes of documents of {length}")
        total = {k: total[k] + g for k, g in dp_alone.items()}
    assert np.abs(dx[:, 10:]).max() == 0.0                   # what is not asked for has no influence
    for k, g in total.items():
        close(dp[k], g, tolerance, k)


def test_a_layer_that_does_not_say_how_it_packs_is_refused():
    class Own(SequenceMixer):
        def forward(self, x, state=None):
            return x, state

    with pytest.raises(em.UnsupportedOp, match=r"the module \(Own\) cannot keep .* apart: it does not say how"):
        with packed(put(SEGMENTS, "int32"), Own()):
            pytest.fail("the body ran")
    for bad in (put(SEGMENTS), put(SEGMENTS[0], "int32"), SEGMENTS):
        with pytest.raises(ShapeError, match=r"expected segments of integers, \(batch, length\)"):
            with packed(bad, em.nn.layers.Dense(em.nn.layers.DenseConfig(2))):
                pytest.fail("the body ran")


@pytest.mark.parametrize("fields", [dict(d_input=4, heads=2, causal=False), dict(d_input=3, causal=False, taps=3)])
def test_documents_of_bidirectional_layers_are_apart(fields, backend):
    name = "self_attention" if "heads" in fields else "feature_extraction"
    mixer = build(name, fields, backend)
    x = get(inputs(fields, backend, "float32"))
    with packed(put(SEGMENTS, "int32"), mixer):
        y = get(mixer(put(x))[0])
    for first, second, length in DOCUMENTS:
        close(y[:1, first:first + length], mixer(put(x[:1, first:first + length]))[0], 1e-5)
        close(y[1:, second:second + length], mixer(put(x[1:, second:second + length]))[0], 1e-5)
