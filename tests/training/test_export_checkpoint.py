"""`export.py`: what leaves is a whole, plain model that transformers loads; what was there stays."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gpt.cli import Command
from gpt.composition import load_config
from gpt.config import ExportConfig, RunConfig
from gpt.model.huggingface import load_model
from gpt.options import UserError, to_dict
from gpt.training.export_checkpoint import export
from gpt.training.model_card import train_command
from gpt.training.run import train

from .conftest import MakeConfig

transformers = pytest.importorskip("transformers")


@pytest.fixture
def run_dir(make_config: MakeConfig) -> Path:
    config = make_config(train={"max_steps": 4, "sample_tokens": 0})
    train(config)
    return Path(config.run_dir)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 0.05), ("fp16", 0.005)])
def test_transformers_computes_the_same(run_dir: Path, tmp_path: Path, dtype: str, tolerance: float) -> None:
    output = tmp_path / "out"
    export(ExportConfig(checkpoint=str(run_dir), output=str(output), dtype=dtype))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(output)
    assert str(theirs.dtype).removeprefix("torch.") == {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[dtype]
    ours = load_model(run_dir / "checkpoints" / "best").eval()
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.float()(tokens).logits
        torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=tolerance)
    assert theirs.generation_config.eos_token_id == 256
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip


def test_weights_in_shards_are_the_same_weights(run_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    export(ExportConfig(checkpoint=str(run_dir), output=str(output), max_shard_gb=2e-5))
    index = json.loads((output / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    whole = load_file(run_dir / "checkpoints" / "best" / "model.safetensors")
    parts = {name: tensor for file in files for name, tensor in load_file(output / file).items()}
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    transformers.AutoModelForCausalLM.from_pretrained(output)
    again = load_model(output)
    assert all(map(torch.equal, again.parameters(), load_model(run_dir / "checkpoints" / "best").parameters()))


def test_what_is_there_is_never_overwritten(run_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        export(ExportConfig(checkpoint=str(run_dir), output=str(output)))
    assert [path.name for path in output.iterdir()] == ["precious.txt"]
    with pytest.raises(UserError, match="is a file"):
        export(ExportConfig(checkpoint=str(run_dir), output=str(output / "precious.txt")))


def test_a_failure_leaves_nothing(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpt.training.export_checkpoint.flush", fail)
    with pytest.raises(OSError, match="No space"):
        export(ExportConfig(checkpoint=str(run_dir), output=str(tmp_path / "out")))
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_the_command_on_the_card_gives_the_same_configuration(make_config: MakeConfig) -> None:
    config = make_config(
        data={"name": "jsonl", "template": "{a}\n\\{{b}}", "files": ["a b.jsonl", "c,d.jsonl"], "prepared_dir": ""},
        tokenizer={"name": "bpe", "vocab_size": 300}, schedule={"name": "wsd"}, train={"device": "auto"}, run_dir="",
    )  # fmt: skip
    command = shlex.split(train_command(to_dict(config)))
    assert command[:2] == ["python", "train.py"]
    again = load_config(Command(kind=RunConfig, config="train", description=""), [*command[2:], "run_dir=x"])
    assert to_dict(again) == to_dict(config) | {"run_dir": "x"}
