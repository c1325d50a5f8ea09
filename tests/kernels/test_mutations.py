"""No barrier of any kernel can be left out: without it the executor finds a race in one of the calls of calls.py."""

import re

import pytest

from ember_ml.kernels import source, source_text
from tests.kernels.calls import STEMS, calls
from tests.simt import KernelFault

#: `meet` is a function of fftconv's that holds one: each call of it is a barrier of its own
BARRIER = re.compile(r"(?:threadgroup_barrier|simdgroup_barrier|__syncthreads|__syncwarp|\bmeet<[^;]*>)\([^;]*\)(?=;)")


def _barriers():
    for language in ("metal", "cuda"):
        for stem in STEMS:
            try:
                text = source_text(language, stem)
            except FileNotFoundError:                          # test_source tells which twins have to be there
                continue
            for found in BARRIER.finditer(re.sub(r"//.*", lambda comment: " " * len(comment[0]), text)):
                line = text[:found.start()].count("\n") + 1
                yield pytest.param(language, stem, found.span(), id=f"{language}/{stem}:{line} {found[0].partition('(')[0]}")


@pytest.mark.parametrize("language, stem, span", list(_barriers()))
def test_no_barrier_can_be_left_out(language, stem, span, request, tmp_path, monkeypatch):
    machine = request.getfixturevalue(language)
    if machine.on_gpu:
        pytest.skip("a GPU does not tell of races")
    text, folder = source_text(language, stem), tmp_path / language
    folder.mkdir()
    (folder / f"{stem}{'.metal' if language == 'metal' else '.cu'}").write_text(text[:span[0]] + text[span[1]:])
    monkeypatch.setattr(source, "PLACES", (tmp_path, *source.PLACES))
    source_text.cache_clear()
    request.addfinalizer(source_text.cache_clear)
    for call in calls(stem):
        try:
            call(machine, "float32")
        except KernelFault as fault:
            assert re.search("data race|uninitialised", str(fault))
            return
    pytest.fail(f"without {text[span[0]:span[1]]} no call finds a fault: add one to tests/kernels/calls.py that does, or take it out")
