"""A run knows its alphabet when its data is gone."""

from ember_ml import data
from ember_ml.nn.pipeline.training import config as configs
from ember_ml.nn.pipeline.training.config import RunConfig, TrainingConfig
from ember_ml.nn.pipeline.training.supervised import SupervisedTraining


def test_letters_are_kept_with_the_run(tmp_path):
    text = tmp_path / "x.txt"
    text.write_text("a \"quoted\" \\ back\tslash\nä ☃ \x7f 'end'\n" * 20)
    run = RunConfig(data={"kind": "text", "files": str(text), "length": 8, "batch": 2, "tokenizer": "characters", "held_out": 0.2},
                    model={"head": "dense", "defaults": {"d_input": 8}, "blocks": ["min_gru"]}, optimizer={"name": "adam", "rate": 1e-3},
                    training=TrainingConfig(steps=1), backend="numpy")
    stage = SupervisedTraining(run)
    configs.write(tmp_path / "config.toml", stage.run)
    text.unlink()
    kept = data.alphabet(configs.read(tmp_path / "config.toml").data)
    assert kept.letters == stage.data.alphabet.letters == "".join(sorted(set("a \"quoted\" \\ back\tslash\nä ☃ \x7f 'end'")))
    assert "letters" not in run.data
