"""torch's own files from strangers: tensors that hold no numbers of their own, or of kinds that no engine has, are refused before they are copied."""

import zipfile

import pytest

from ember_ml.errors import WeightsError
from ember_ml.interop.convert import convert
from tests.interop._folder import case, publish

torch = pytest.importorskip("torch", reason="writes torch's own files")

NAME = "backbone.norm_f.weight"
ODD = {
    "terabytes of one number": (lambda w: w[:1].expand(2 ** 40), "expected as many numbers in the file as its shape .*1099511627776.* has, got [0-9]+ bytes"),
    "a dtype that no engine has": (lambda w: w.to(torch.float8_e4m3fn), "expected a dense tensor of numbers, got torch.float8_e4m3fn"),
    "sparse": (lambda w: w.to_sparse(), "expected a dense tensor of numbers, got .*sparse_coo"),
    "without numbers": (lambda w: w.to("meta"), "expected a dense tensor of numbers, got .*on meta"),
    "nested": (lambda w: torch.nested.nested_tensor([w, w[:3]]), "expected a dense tensor of numbers"),
    "complex": (lambda w: torch.complex(w, w), "expected float32, got complex64"),
    "another shape": (lambda w: w[None], r"expected \[[0-9]+\], got \[1, [0-9]+\]"),
}


@pytest.fixture
def mamba(tmp_path):
    """(folder, state dict) of a checkpoint whose weights are to be written."""
    c = case("hf", "mamba")
    folder = publish(c, tmp_path / "mamba", "mamba")
    (folder / "model.safetensors").unlink()
    return folder, {name: torch.tensor(w) for name, w in c.weights.items()}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_odd_tensors_are_refused(what, mamba, tmp_path):
    (folder, state), (make, message) = mamba, ODD[what]
    torch.save({**state, NAME: make(state[NAME])}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=message) as caught:
        convert(folder, tmp_path / "m.safetensors")
    assert str(folder) in str(caught.value) and not (tmp_path / "m.safetensors").exists()


def test_many_names_of_one_memory_are_refused(mamba, tmp_path):
    folder, state = mamba
    one = torch.zeros(100_000)
    torch.save({f"x{i}": one for i in range(100)}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="expected as many numbers in the file as its shape"):
        convert(folder, tmp_path / "m.safetensors")


@pytest.mark.parametrize("data", [b"cos\nmkdir\n(S'ran'\ntR.", b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".", b"PK\x03\x04", b""])
def test_pickles_are_never_run(data, mamba, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (mamba[0] / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(WeightsError, match="pytorch_model.bin: is damaged, or holds more than tensors and numbers"):
        convert(mamba[0], tmp_path / "m.safetensors")
    assert not (tmp_path / "ran").exists()


def test_a_packed_record_that_unfolds_is_refused(mamba, tmp_path):
    folder, state = mamba
    torch.save(state, folder / "whole.bin")
    with zipfile.ZipFile(folder / "whole.bin") as whole, zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name) + (bytes(1 << 20) if name.endswith("/data/0") else b""))
    (folder / "whole.bin").unlink()
    with pytest.raises(WeightsError, match="is damaged, or holds more"):
        convert(folder, tmp_path / "m.safetensors")
