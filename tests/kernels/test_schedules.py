"""Threads may run in any order: without faults, and unchecked with the same bits, whichever simdgroups, threads and groups come first."""

import numpy as np
import pytest

from ember_ml.kernels import source_text
from tests.kernels.calls import STEMS, calls
from tests.simt import using


@pytest.mark.parametrize("language", ["metal", "cuda"])
@pytest.mark.parametrize("stem", STEMS)
def test_every_schedule_gives_the_same_bits(stem, language, request):
    machine = request.getfixturevalue(language)
    if machine.on_gpu:
        pytest.skip("a GPU has its own order")
    try:
        source_text(language, stem)
    except FileNotFoundError:
        pytest.skip("has no such twin yet")                    # test_source tells which twins have to be there
    for call in calls(stem):
        expected = call(machine, "float32")                    # checked: what test_mutations.py changes has no faults of its own
        for schedule in (1, 2, 3):
            with using(check=False, schedule=schedule):
                for a, b in zip(call(machine, "float32"), expected):
                    np.testing.assert_array_equal(a, b)
