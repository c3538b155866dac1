"""What a run takes over from its initial model, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt.config import ModelConfig, RunConfig, TokenizerConfig
from gpt.model.context import adapt
from gpt.model.huggingface import load_model, save_model
from gpt.model.transformer import Decoder
from gpt.options import ConfigError, UserError, defaults, from_dict
from gpt.text.tokenizers import Tokenizer
from gpt.text.vocabularies import build_tokenizer
from gpt.training.initial import adopt_model, check_initial, run_name
from gpt.training.run import train

CORPUS_CHARACTERS = "abcdefghijklmnopqrstuvwxyz葉. \n"


def words(files: Path, tmp_path: Path) -> dict[str, Any]:
    """Options of data for the folder of texts `files`."""
    return {"name": "text", "files": [str(files)], "prepared_dir": str(tmp_path / "prepared")}


def make_folder(path: Path, characters: str = "abcdefgh \n", **shape: Any) -> Path:
    """A small model folder with a character tokenizer."""
    path.mkdir(parents=True)
    tokenizer = build_tokenizer(TokenizerConfig(name="char"), characters=characters)
    tokenizer.save(path)
    torch.manual_seed(0)
    shape = {"dialect": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 16} | shape
    save_model(Decoder(ModelConfig(**shape), tokenizer.vocab_size), path, tokenizer.end_of_text)
    return path


def adopted(init_from: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The values of a run after adoption; `given` by dotted name."""
    values = defaults(RunConfig) | {"init_from": str(init_from)}
    for name, value in given.items():
        group, _, last = name.rpartition(".")
        (values[group] if group else values)[last] = value
    adopt_model(values, {"init_from", *given})
    return values


def test_shape_tokenizer_and_run_folder_come_from_the_model(tmp_path: Path) -> None:
    values = adopted(make_folder(tmp_path / "poet"), {})
    model = values["model"]
    assert (model["dialect"], model["n_layer"], model["n_embd"], model["context_length"]) == ("gpt2", 2, 32, 16)
    assert values["tokenizer"]["name"] == "huggingface"
    assert Path(values["tokenizer"]["path"]) == tmp_path / "poet"
    assert values["run_dir"] == "runs/stdlib-poet"
    assert from_dict(RunConfig, values).model.dropout == 0


def test_what_the_user_gave_stays(tmp_path: Path) -> None:
    given = {"model.context_length": 8, "model.dropout": 0.1, "run_dir": "runs/x", "tokenizer.path": "elsewhere"}
    given |= {"tokenizer.name": "huggingface"}
    values = adopted(make_folder(tmp_path / "poet"), given)
    assert values["model"]["context_length"] == 8
    assert values["model"]["dropout"] == 0.1
    assert values["run_dir"] == "runs/x"
    assert values["tokenizer"]["path"] == "elsewhere"


def test_a_long_context_is_not_taken_whole_unless_asked(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "long", dialect="llama", context_length=4096)
    assert adopted(folder, {})["model"]["context_length"] == 1024
    assert adopted(folder, {"model.context_length": 4096})["model"]["context_length"] == 4096


@pytest.mark.parametrize(
    ("name", "value", "own"),
    [("n_layer", 3, 2), ("n_embd", 64, 32), ("dialect", "qwen3", "gpt2"), ("positions", "sinusoidal", "learned"),
     ("tie_embeddings", False, True), ("n_head", 5, 2), ("n_hidden", 100, 128)],
)  # fmt: skip
def test_another_shape_is_refused_by_name(tmp_path: Path, name: str, value: object, own: object) -> None:
    with pytest.raises(ConfigError) as error:
        adopted(make_folder(tmp_path / "poet"), {f"model.{name}": value})
    assert f"model.{name}={value}: the weights of init_from={tmp_path / 'poet'} have {own}" in str(error.value)


def test_an_equal_shape_is_accepted_however_it_is_written(tmp_path: Path) -> None:
    given = {"model.n_layer": 2, "model.n_hidden": 128, "model.n_kv_head": None, "model.positions": "learned"}
    assert adopted(make_folder(tmp_path / "poet"), given)["model"]["n_layer"] == 2


@pytest.mark.parametrize(
    ("init_from", "name"),
    [("gpt2", "gpt2"), ("HuggingFaceTB/SmolLM2-135M@main", "SmolLM2-135M"), ("runs/mine", "mine"),
     ("runs/mine/checkpoints/best", "mine"), ("runs/mine/checkpoints/step-00000010/", "mine"), ("..", "model")],
)  # fmt: skip
def test_run_name(init_from: str, name: str) -> None:
    assert run_name(init_from) == name


def config_from(folder: Path, run_dir: Path, **changes: Any) -> RunConfig:
    values = defaults(RunConfig) | {"init_from": str(folder), "run_dir": str(run_dir)}
    adopt_model(values, {"init_from", "run_dir"})
    for group, options in changes.items():
        values[group] |= options
    return from_dict(RunConfig, values)


def test_a_foreign_tokenizer_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "poet")
    config = config_from(folder, tmp_path / "run", tokenizer={"name": "char", "path": None})
    check_initial(config, Tokenizer.load(folder))
    for characters, reason in (("hgfedcba\n!", "are not those"), ("abcdefghijklmnop", "has 17 tokens")):
        other = build_tokenizer(TokenizerConfig(name="char"), characters=characters)
        with pytest.raises(UserError, match=reason) as error:
            check_initial(config, other)
        assert "leave out the tokenizer options" in str(error.value)


def test_adapters_cannot_extend_the_context(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "poet")
    config = config_from(folder, tmp_path / "run", model={"context_length": 32}, lora={"rank": 2})
    with pytest.raises(UserError, match=r"model.context_length=32: adapters cannot extend the 16 tokens"):
        check_initial(config, Tokenizer.load(folder))


@pytest.mark.parametrize("dialect", ["gpt2", "llama", "qwen3"])
def test_a_cropped_model_computes_what_the_whole_one_does(tmp_path: Path, dialect: str) -> None:
    whole = load_model(make_folder(tmp_path / "poet", dialect=dialect)).eval()
    cropped = load_model(tmp_path / "poet").eval()
    adapt(cropped, ModelConfig(dialect=dialect, n_layer=2, n_head=2, n_embd=32, context_length=8))
    tokens = torch.arange(8)[None] % 11
    torch.testing.assert_close(cropped(tokens), whole(tokens), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="exceed the context length 8"):
        cropped(torch.zeros(1, 9, dtype=torch.long))


@pytest.mark.parametrize("dialect", ["gpt2", "llama"])
def test_an_extended_model_computes_the_same_within_the_old_context(tmp_path: Path, dialect: str) -> None:
    whole = load_model(make_folder(tmp_path / "poet", dialect=dialect)).eval()
    longer = load_model(tmp_path / "poet").eval()
    adapt(longer, ModelConfig(dialect=dialect, n_layer=2, n_head=2, n_embd=32, context_length=40))
    tokens = torch.arange(16)[None] % 11
    torch.testing.assert_close(longer(tokens), whole(tokens), rtol=0, atol=1e-6)
    assert longer(torch.zeros(1, 40, dtype=torch.long)).isfinite().all()
    if dialect == "gpt2":  # the learned table repeats
        torch.testing.assert_close(longer.positions.weight[16:32], whole.positions.weight)


def test_a_folder_whose_path_looks_like_a_revision_keeps_its_name() -> None:
    assert run_name("/home/me@work/models/poet") == "poet"
    assert run_name("org/name@refs/pr/1") == "name"


def damage(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.ln_f.bias"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_damaged_weights_are_refused_and_leave_no_run(tmp_path: Path, corpus_files: Path) -> None:
    folder = make_folder(tmp_path / "poet", characters=CORPUS_CHARACTERS)
    config = config_from(folder, tmp_path / "run", data=words(corpus_files, tmp_path))
    damage(folder)
    with pytest.raises(UserError, match=r"init_from=.*poet cannot be opened: .*norm.bias holds what is no"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_move_into_a_model_folder(tmp_path: Path, corpus_files: Path) -> None:
    folder = make_folder(tmp_path / "poet", characters=CORPUS_CHARACTERS)
    with pytest.raises(UserError, match="is a model folder"):
        train(config_from(folder, folder, data=words(corpus_files, tmp_path)))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 33}, "lora.rank=33 is more than the rank of the matrices, 32"),
        ({"rank": 2, "targets": ["mlp.up", "mlp.up"]}, "lora.targets=.*names one twice"),
        ({"rank": 2, "targets": []}, "lora.targets=.*is empty"),
        ({"rank": 2, "targets": ["head"]}, "there is no 'head'"),
        ({"rank": 2, "alpha": 1e300}, "lora.alpha"),
        ({"alpha": 3.0}, "lora.alpha=3.0: does nothing without adapters"),
        ({"targets": ["mlp.up"]}, "lora.targets=.*does nothing without adapters"),
    ],
)
def test_adapters_that_cannot_be(tmp_path: Path, lora: dict[str, Any], message: str) -> None:
    folder = make_folder(tmp_path / "poet")
    with pytest.raises(UserError, match=message):
        check_initial(config_from(folder, tmp_path / "run", lora=lora), Tokenizer.load(folder))


@pytest.mark.parametrize("kind", ["byte", "char", "bpe", "gpt2"])
def test_a_tokenizer_of_another_kind_is_refused_before_any_text_is_read(tmp_path: Path, kind: str) -> None:
    folder = make_folder(tmp_path / "poet")
    with pytest.raises(ConfigError, match=f"tokenizer={kind}: the weights of init_from=.*leave out the option"):
        adopted(folder, {"tokenizer.name": kind})
