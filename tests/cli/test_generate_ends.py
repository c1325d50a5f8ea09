"""A model of documents ends its text where a document would end."""

import json

from ember_ml.cli import generate
from ember_ml.cli.output import Output
from ember_ml.nn.pipeline.training import config as configs
from ember_ml.nn.pipeline.training.config import RunConfig, TrainingConfig
from ember_ml.nn.pipeline.training.supervised import SupervisedTraining


def test_the_answer_and_then_nothing(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"q": f"{'ab'[i % 2]}=", "a": "01"[i % 2], "n": i}) + "\n" for i in range(40)))
    run = RunConfig(data={"kind": "jsonl", "files": str(tmp_path / "x.jsonl"), "prompt": "q", "completion": "a", "tokenizer": "characters",
                          "length": 12, "batch": 4, "split": "tail", "held_out": 0.2},
                    model={"head": "dense", "defaults": {"d_input": 16, "norm": "rms_norm"}, "blocks": ["min_gru"]},
                    optimizer={"name": "adam", "rate": 3e-2}, training=TrainingConfig(steps=40), backend="numpy")
    stage = SupervisedTraining(run)
    stage().save(tmp_path / "model.safetensors")
    configs.write(tmp_path / "config.toml", stage.run)
    for prompt, answer in (("a=", "0"), ("b=", "1")):
        generate.run(tmp_path, 20, prompt, 0, "numpy", [], Output(), temperature=0.01)
        assert capsys.readouterr().out == f"{prompt}{answer}\n"
