"""`export.py`: what leaves is a whole, plain model that transformers loads; what was there stays."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from export import COMMAND
from export import run as run_export
from gpt.cli import Command, main
from gpt.composition import load_config
from gpt.config import ExportConfig, RunConfig, SampleConfig
from gpt.config.sampling import DEFAULT_TEMPERATURE
from gpt.model.huggingface import load_model
from gpt.options import ConfigError, UserError, defaults, to_dict
from gpt.training.command import train_command
from gpt.training.export_checkpoint import export
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


BAD_OUTPUTS = {
    ".": "output=. is in use",
    "../here": "output=../here is in use",
    "a file": "output=a file is a file",
    "a file/x": "cannot be made (Not a directory)",
    "a file/x/y": "cannot be made (Not a directory)",
    "/proc/x": "output=/proc/x cannot be made (",
    "a" * 300: "cannot be made (File name too long)",
    "a" * 300 + "/x": "cannot be made (File name too long)",
    "a link": "output=a link is a link",
    "a link to nothing": "is a link",
    "run/checkpoints/step-00000009": "is among the checkpoints of a run",
    "run/checkpoints/best/out/x": "is among the checkpoints of a run",
}


@pytest.mark.parametrize("output", BAD_OUTPUTS, ids=lambda output: output[:40])
def test_an_output_that_cannot_be_is_refused_before_the_model_is_opened(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    (here / "run/checkpoints/step-00000004").mkdir(parents=True)
    (here / "run/checkpoints/best").symlink_to("step-00000004")
    (tmp_path / "empty").mkdir()
    (here / "a link").symlink_to(tmp_path / "empty")
    (here / "a link to nothing").symlink_to("nothing")
    (here / "a file").write_text("mine")
    if output in (".", "../here"):
        here = tmp_path / "empty" / "here"
        here.mkdir()
    monkeypatch.chdir(here)
    before = sorted(tmp_path.rglob("*"))
    assert main(COMMAND, run_export, ["checkpoint=nowhere", f"output={output}"]) == 2
    assert BAD_OUTPUTS[output] in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_filled(run_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    export(ExportConfig(checkpoint=str(run_dir), output=f"{output}/"))
    assert (output / "model.safetensors").is_file()


def test_shards_have_a_largest_size() -> None:
    with pytest.raises(ConfigError, match=r"max_shard_gb=1e\+300: must be at most 1000"):
        ExportConfig(checkpoint="x", output="y", max_shard_gb=1e300)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (SafetensorError("Error while serializing: I/O error: No space left on device"), 1, "No space left on device"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["safetensors", "disk", "Ctrl-C"],
)
def test_a_failure_is_one_line_and_leaves_nothing(
    error: BaseException, status: int, message: str, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("gpt.model.tensor_files.save_file", fail)
    capsys.readouterr()
    assert main(COMMAND, run_export, [f"checkpoint={run_dir}", f"output={tmp_path}/new/er/out"]) == status
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_what_appears_meanwhile_is_kept(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ExportConfig(checkpoint=str(run_dir), output=str(tmp_path / "out"))

    def card(*_: object) -> str:  # another process is quicker
        with monkeypatch.context() as patch:
            patch.setattr("os.getpid", lambda: 0)
            patch.setattr("gpt.training.export_checkpoint.model_card", lambda *_: "the quicker one")
            export(config)
        return "the slower one"

    monkeypatch.setattr("gpt.training.export_checkpoint.model_card", card)
    with pytest.raises(UserError, match="out has been filled by something else meanwhile"):
        export(config)
    assert (tmp_path / "out" / "README.md").read_text() == "the quicker one"
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


def test_a_damaged_state_is_named(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = run_dir / "checkpoints" / "best" / "trainer" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"config": []}))
    capsys.readouterr()
    assert main(COMMAND, run_export, [f"checkpoint={run_dir}", f"output={tmp_path}/out"]) == 2
    assert "state.json cannot be read (config is [])" in capsys.readouterr().err


def test_the_id_before_a_text_stays_that_of_the_tokenizer(run_dir: Path, tmp_path: Path) -> None:
    tokenizer = run_dir / "checkpoints" / "best" / "tokenizer.json"
    spec = json.loads(tokenizer.read_text())
    (end,) = (token["content"] for token in spec["added_tokens"] if token["id"] == 256)
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "!", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"!": {"id": "!", "ids": [0], "tokens": ["!"]}},
    }
    tokenizer.write_text(json.dumps(spec))
    export(ExportConfig(checkpoint=str(run_dir), output=str(tmp_path / "out")))
    for file in ("config.json", "generation_config.json"):
        found = json.loads((tmp_path / "out" / file).read_text())
        assert (found["bos_token_id"], found["eos_token_id"]) == (0, 256)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == end


def test_it_writes_as_sample_py_does(run_dir: Path, tmp_path: Path) -> None:
    export(ExportConfig(checkpoint=str(run_dir), output=str(tmp_path / "out")))
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert found["max_new_tokens"] == defaults(SampleConfig)["max_new_tokens"]
    assert found["temperature"] == DEFAULT_TEMPERATURE


def test_the_command_on_the_card_gives_the_same_configuration(make_config: MakeConfig) -> None:
    config = make_config(
        data={"name": "jsonl", "template": "{a}\n\\{{b}}", "files": ["a b.jsonl", "c,d.jsonl"], "prepared_dir": ""},
        tokenizer={"name": "bpe", "vocab_size": 300}, schedule={"name": "wsd"}, train={"device": "auto"}, run_dir="",
    )  # fmt: skip
    command = shlex.split(train_command(to_dict(config)))
    assert command[:2] == ["python", "train.py"]
    again = load_config(Command(kind=RunConfig, config="train", description=""), [*command[2:], "run_dir=x"])
    assert to_dict(again) == to_dict(config) | {"run_dir": "x"}
