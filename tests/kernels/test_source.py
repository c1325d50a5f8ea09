"""Where the kernel texts come from, and that the twins are twins."""

import re

import pytest

from ember_ml.kernels import ALL_SPECS, LANES, SPECS, THREADS, digest, gpu, scan, source, source_text
from ember_ml.kernels import fftconv_launch as fftconv
from ember_ml.ops import REGISTRY


@pytest.fixture
def places(tmp_path, monkeypatch):
    """(checkout, package), both empty, as the only places where texts are looked for."""
    found = tmp_path / "checkout", tmp_path / "package"
    monkeypatch.setattr(source, "PLACES", found)
    source_text.cache_clear()
    yield found
    source_text.cache_clear()


def put(place, text):
    (place / "metal").mkdir(parents=True)
    (place / "metal" / "moe.metal").write_text(text)


def test_the_checkout_comes_before_the_package(places):
    checkout, package = places
    put(package, "from the wheel")
    assert source_text("metal", "moe") == "from the wheel"
    put(checkout, "being worked on")
    source_text.cache_clear()
    assert source_text("metal", "moe") == "being worked on"


def test_a_missing_file_says_where_it_was_looked_for(places):
    checkout, package = places
    with pytest.raises(FileNotFoundError) as found:
        source_text("cuda", "moe")
    assert str(checkout / "cuda" / "moe.cu") in str(found.value)
    assert str(package / "cuda" / "moe.cu") in str(found.value)


def test_the_digest_follows_the_text(places):
    put(places[0], "a")
    first = digest("metal", "moe")
    (places[0] / "metal" / "moe.metal").write_text("b")
    source_text.cache_clear()
    assert re.fullmatch("[0-9a-f]{12}", first) and digest("metal", "moe") != first


def test_parts_stand_where_they_are_included(places):
    put(places[0], 'first\n#include "part.metal"\n#include <metal_stdlib>\nlast\n')
    (places[0] / "metal" / "part.metal").write_text("inside\n")
    assert source_text("metal", "moe") == (
        'first\n#line 1 "part.metal"\ninside\n#line 3 "moe.metal"\n#include <metal_stdlib>\nlast\n')


def functions(text: str, stem: str) -> set[str]:
    """Names of the functions in a file's namespace, but for CUDA's position(), which MLX passes, and warp_sum(), which Metal has."""
    inside = re.search(rf"namespace {stem} {{(.*)}}  // namespace {stem}", text, re.DOTALL)[1]
    found = set(re.findall(r"^(?:__device__ )?(?:inline )?\w+(?:<\w+>)? (\w+)\(", inside, re.MULTILINE))
    return found - {"position", "warp_sum"}


def test_every_kernel_of_an_op_is_listed():
    forgotten = [op.name for op in REGISTRY.values() if op.kernel is not None and op.kernel not in ALL_SPECS]
    assert not forgotten, f"add the KernelSpec of each to SPECS in ember_ml/kernels/__init__.py: {forgotten}"


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_the_twins_have_the_same_functions(spec):
    metal, cuda = source_text("metal", spec.stem), source_text("cuda", spec.stem)
    assert functions(metal, spec.stem) == functions(cuda, spec.stem)
    for entry in spec.entries:
        assert entry.name.removeprefix(f"{spec.stem}_") in functions(metal, spec.stem)
        assert f"__global__ void {entry.name}(" in cuda


ENTRIES = {*(entry for spec in ALL_SPECS for entry in spec.entries), fftconv.SPECTRUM, fftconv.FILTER_GRAD, fftconv.MEND,
           fftconv.COLUMNS["cuda"], fftconv.ROWS["cuda"]}


@pytest.mark.parametrize("stem", sorted({spec.stem for spec in ALL_SPECS}))
def test_a_cuda_kernel_takes_what_its_entry_says(stem):
    """Names and types, one by one: CuPy passes any numbers by position, and a kernel reads them as it likes."""
    text = re.sub(r"//.*|#define.*", "", source_text("cuda", stem))
    text = text.replace("FFTCONV_KERNEL", "__global__ void").replace("FFTCONV_WRITTEN", "T")
    found = dict(re.findall(r"__global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(([^)]*)\)", text))
    entries = {entry.name: entry for entry in ENTRIES if entry.stem == stem}
    assert found.keys() == entries.keys()
    for name, entry in entries.items():
        parameters = [" ".join(parameter.split()) for parameter in found[name].split(",")]
        c_types = {"float32": "float", "int32": "int"}
        expected = [re.escape(f"const {c_types.get(kind, kind)}* {of}") for of, kind in entry.inputs]
        expected += [rf"(T|float|int)\* {of}" for of in entry.outputs]
        expected += [r"unsigned \w+"] * len(entry.sizes)
        expected += [rf"{'float' if of in ('eps', 'scale') else 'unsigned'} {of}" for of in entry.numbers]
        expected += [r"size_t \w+"] * (getattr(entry, "strided", 0) * getattr(entry, "strides", 0))
        assert len(parameters) == len(expected), name
        for parameter, one in zip(parameters, expected):
            assert re.fullmatch(one, parameter), f"{name}: {parameter}"


@pytest.mark.parametrize("width", [1, 31, 32, 33, 64, 65, 255, 256, 257, 100_000])
def test_groups_are_whole_simdgroups_and_no_wider_than_rows_need(width):
    x, y = gpu.rows(1, width).group
    assert x * y == THREADS and x % LANES == 0
    assert x >= min(width, THREADS) and (x == LANES or x // 2 < width)


@pytest.mark.parametrize("language", ["metal", "cuda"])
def test_the_scan_s_launchers_and_files_agree_on_sizes(language):
    sizes = dict(re.findall(r"constexpr \w+ (\w+) = (\d+);", source_text(language, "scan")))
    assert sizes == {"LANES": str(LANES), "SEGMENTS": str(scan.SEGMENTS[language]), "STEPS": str(scan.STEPS), "STATES": str(scan.STATES), "BACK_SEGMENTS": str(scan.BACK_SEGMENTS)}
    assert [scan.segments(language, n) for n in (1, 8, 9, 10_000)] == [1, 1, 2, scan.SEGMENTS[language]]
