"""No barrier of any kernel can be left out: without it the executor finds a race in one of the calls of calls.py.

A file is compiled once for all its barriers: which one is left out is told at the launch.
"""

import re

import pytest

from ember_ml.kernels import source, source_text
from tests.kernels.calls import STEMS, calls
from tests.simt import KernelFault, using

#: `meet` is a function of fftconv's that holds one: each call of it is a barrier of its own
BARRIER = re.compile(r"(?:threadgroup_barrier|simdgroup_barrier|__syncthreads|__syncwarp|\bmeet<[^;]*>)\([^;]*\)(?=;)")


def _found(text: str) -> list[re.Match]:
    """The barriers of a text, outside of comments."""
    return list(BARRIER.finditer(re.sub(r"//.*", lambda comment: " " * len(comment[0]), text)))


def _mutable(text: str) -> str:
    """The text whose barriers, from 1 on, can be left out at a launch."""
    for number, found in reversed(list(enumerate(_found(text), 1))):
        text = f"{text[:found.start()]}(simt_left_out({number}) ? (void)0 : {found[0]}){text[found.end():]}"
    return text


def _barriers():
    for language in ("metal", "cuda"):
        for stem in STEMS:
            try:
                text = source_text(language, stem)
            except FileNotFoundError:                          # test_source tells which twins have to be there
                continue
            for number, found in enumerate(_found(text), 1):
                line = text[:found.start()].count("\n") + 1
                yield pytest.param(language, stem, number, id=f"{language}/{stem}:{line} {found[0].partition('(')[0]}")


#: (language, stem, call) that were seen to find nothing with every barrier in its place
_right = set()


@pytest.mark.parametrize("language, stem, number", list(_barriers()))
def test_no_barrier_can_be_left_out(language, stem, number, request, tmp_path, monkeypatch):
    machine = request.getfixturevalue(language)
    if machine.on_gpu:
        pytest.skip("a GPU does not tell of races")
    text, folder = source_text(language, stem), tmp_path / language
    folder.mkdir()
    (folder / f"{stem}{'.metal' if language == 'metal' else '.cu'}").write_text(_mutable(text))
    monkeypatch.setattr(source, "PLACES", (tmp_path, *source.PLACES))
    source_text.cache_clear()
    request.addfinalizer(source_text.cache_clear)
    for at, call in enumerate(calls(stem)):
        try:
            with using(without=number):
                call(machine, "float32")
        except KernelFault as fault:
            assert re.search("data race|uninitialised", str(fault))
            if (language, stem, at) not in _right:             # the same text with every barrier has no fault
                call(machine, "float32")
                _right.add((language, stem, at))
            return
    pytest.fail(f"without {_found(text)[number - 1][0]} no call finds a fault: add one to tests/kernels/calls.py that does, or take it out")
