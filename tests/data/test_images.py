"""Images in folders, as sequences of patches."""

import numpy as np
import pytest

from ember_ml.data import open_source
from ember_ml.data.vision import as_patches, read_image
from ember_ml.errors import ConfigError, DataError

PIL = pytest.importorskip("PIL.Image", reason="the extra vision is not installed")


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name, level in (("day", 200), ("night", 40)):
        (tmp_path / name).mkdir()
        for i in range(15):
            PIL.fromarray((level + rng.integers(0, 50, (12, 20, 3))).astype(np.uint8)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_folders_are_classes(photos):
    source = open_source({"kind": "images", "files": f"{photos}/*/*.png", "batch": 4, "height": 6, "width": 10}, 0)
    assert (source.task, source.class_names, source.classes, source.channels) == ("classification", ["day", "night"], 2, 10)
    x, y = source.batch(0)
    assert x.shape == (4, 6, 10) and (source.scale.undo(x).mean((1, 2)) > 128).tolist() == (y == 0).tolist()
    assert source.baselines()["nearest neighbour"] == 1.0
    one = read_image(photos / "day" / "0.png", 6, 10)
    whole = np.asarray(PIL.open(photos / "day" / "0.png").convert("L"), np.float64).reshape(6, 2, 10, 2).mean((1, 3))
    assert np.abs(one[..., 0] - whole).max() <= 1.0                              # the mean of the pixels that became one, rounded


def test_patches_row_by_row():
    image = np.arange(4 * 6).reshape(1, 4, 6, 1)
    assert as_patches(image, 2, 3)[0].tolist() == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11], [12, 13, 14, 18, 19, 20], [15, 16, 17, 21, 22, 23]]
    assert as_patches(image, 1, 6)[0].tolist() == image[0, :, :, 0].tolist()


def test_refuses(photos):
    table = {"kind": "images", "files": f"{photos}/*/*.png", "batch": 4, "height": 6, "width": 10}
    with pytest.raises(ConfigError, match=r"divides height and width, 6 x 10; received \[4, 2\]"):
        open_source({**table, "patch": [4, 2]}, 0)
    with pytest.raises(DataError, match="at least two classes, each class in a folder .* 15 files in the folder 'day'"):
        open_source({**table, "files": f"{photos}/day/*.png"}, 0)
    raw = (photos / "day" / "3.png").read_bytes()
    (photos / "day" / "3.png").write_bytes(raw[:200])
    with pytest.raises(DataError, match="3.png: cannot be read as an image"):
        open_source(table, 0)
