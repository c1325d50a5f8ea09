"""Calls that reach every part of every kernel file, for checks that go over all of them.

A file comes in by its specs, with their samples. Where these do not reach everything (a kernel that is compiled for many
sizes), MORE adds calls.
"""

import ml_dtypes
import numpy as np
import pytest

from ember_ml.kernels import SPECS
from ember_ml.kernels import fftconv_plan as plans
from ember_ml.kernels import shortconv as short_plans
from tests.kernels import long_convolution
from tests.kernels import test_shortconv as shortconv

KINDS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int32": np.int32}


def _fftconv(length, options="v q", plan=None, metal=None, head_dim=1):
    """plan, metal: plans that otherwise begin at lengths that take seconds here; metal on Metal alone."""
    def call(machine, dtype):
        with pytest.MonkeyPatch.context() as patch:
            if plan is not None:
                long_convolution.every_length_takes(patch, plan, metal or plan)
            given = long_convolution.case(length, length, options, dtype, batch=1, heads=1, head_dim=head_dim)
            return tuple(long_convolution.run(machine, *given).values())
    return call


def _shortconv(machine, dtype):
    """Gates, and a block with several tiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(short_plans, "BLOCKS", 1)
        return tuple(long_convolution.run(machine, *shortconv.direct_case(70, 5, 3, "D v q k_reverse", dtype)).values())


#: stem -> functions of (machine, dtype)
MORE = {"shortconv": [_shortconv],
        "fftconv": [_fftconv(66), _fftconv(1000), _fftconv(200, ""),
                    _fftconv(256, plan=plans.CudaPlan(8, 4), metal=plans.Plan(8, 4, split=True)),
                    _fftconv(512, plan=plans.LongPlan(1, plans.CudaPlan(8, 4)), head_dim=2),
                    _fftconv(2000, plan=plans.LongPlan(3, plans.CudaPlan(8, 4)), metal=plans.LongPlan(6, plans.Plan(5, 3)), head_dim=2)]}

STEMS = sorted({spec.stem for spec in SPECS} | MORE.keys())


def calls(stem):
    """Functions of (machine, dtype): each calls a launcher, and returns its outputs as NumPy arrays."""
    def sample(spec):
        def call(machine, dtype):
            arrays, static = spec.sample(spec.forms[0])
            given = [machine.array(np.array(x, KINDS[kind])) for x, kind in zip(arrays, spec.kinds(dtype))]
            out = machine.kernels.KERNELS[spec.name](*given, **static)
            return tuple(machine.numpy(x) for x in (out if isinstance(out, tuple) else (out,)) if x is not None)
        return call
    return [sample(spec) for spec in SPECS if spec.stem == stem] + MORE.get(stem, [])
