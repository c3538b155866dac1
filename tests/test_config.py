"""`gpt/config`: validation, conversion from and to plain dicts, and the presets in `configs/`."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpt.config import DataConfig, ModelConfig, RunConfig, SampleConfig, TokenizerConfig
from gpt.options import ConfigError, Mistake, Options, UserError, from_dict, nearest, to_dict, to_yaml, written

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def mistakes_of(make: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make()
    return [str(mistake) for mistake in caught.value.mistakes]


def test_every_option_is_documented_and_typed() -> None:
    hints = typing.get_type_hints(RunConfig).values()
    kinds: list[Any] = [RunConfig, SampleConfig, *(hint for hint in hints if isinstance(hint, type))]
    for kind in kinds:
        if issubclass(kind, Options):
            assert kind.__dataclass_params__.frozen
            for spec in dataclasses.fields(kind):
                assert spec.metadata["rule"].doc, spec.name


def test_a_mistake_shows_name_value_and_sentence() -> None:
    assert str(Mistake("stop", "is empty", "")) == "stop=: is empty"
    assert str(Mistake("stop", "is empty")) == "stop: is empty"
    assert str(Mistake("stop", "is odd", "a\nb")) == "stop=a\\nb: is odd"
    assert len(str(Mistake("stop", "", "x" * 1000))) < 100
    assert issubclass(ConfigError, UserError)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: ModelConfig(n_layer=0), ["n_layer=0: must be at least 1"]),
        (lambda: ModelConfig(dropout=1.0), ["dropout=1.0: must be less than 1"]),
        (lambda: ModelConfig(dropout=float("nan")), ["dropout=nan: is not a finite number"]),
        (lambda: ModelConfig(dialect="bert"), ["dialect=bert: is not one of gpt2, llama, qwen3"]),
        (lambda: ModelConfig(n_embd=250), ["n_embd=250: must be a multiple of n_head=4"]),
        (lambda: ModelConfig(n_layer=0, n_head=0), ["n_layer=0: must be at least 1", "n_head=0: must be at least 1"]),
        (lambda: TokenizerConfig("byte", vocab_size=300), ["vocab_size=300: is only for tokenizer=bpe, not byte"]),
        (lambda: DataConfig("stdlib", column="x"), ["column=x: is only for data=huggingface, not stdlib"]),
        (
            lambda: SampleConfig(checkpoint="x", device="gpu"),
            ["device=gpu: is not one of auto, cpu, cuda, cuda:N, mps"],
        ),
    ],
)
def test_validation(make: Any, expected: list[str]) -> None:
    assert mistakes_of(make) == expected


CONFIG = RunConfig(
    run_dir="runs/my run, ${2}",
    seed=2**62 + 1,
    data=DataConfig("jsonl", files=("a,b.jsonl", "詩集.jsonl"), template="{title}\n\t{text}: '\"\\ ${x}"),
)


def test_round_trips() -> None:
    plain = to_dict(CONFIG)
    assert plain["data"]["files"] == ["a,b.jsonl", "詩集.jsonl"]
    assert from_dict(RunConfig, plain) == CONFIG
    assert from_dict(RunConfig, json.loads(json.dumps(plain))) == CONFIG
    assert from_dict(RunConfig, yaml.safe_load(to_yaml(CONFIG))) == CONFIG
    assert "詩集" in to_yaml(CONFIG)


@pytest.mark.parametrize(
    "text", ["null", "on", "1e-3", "2024", "~", "- a", "a: b", "\x85\ufeff\u2028", "😀", " x ", "#"]
)
def test_free_text_survives_yaml(text: str) -> None:
    config = SampleConfig(checkpoint="x", prompt=text, stop=(text, "b"))
    assert from_dict(SampleConfig, yaml.safe_load(to_yaml(config))) == config


def test_absent_options_take_their_defaults() -> None:
    assert from_dict(RunConfig, {}) == RunConfig()
    assert from_dict(RunConfig, {"model": {"n_layer": 2}}).model == ModelConfig(n_layer=2)


@pytest.mark.parametrize(
    ("group", "name", "value", "expected"),
    [
        ("train", "max_steps", 1e4, 10000),
        ("train", "max_steps", "1e4", 10000),
        ("train", "eval_tokens", None, None),
        ("train", "grad_clip", 1, 1.0),
        ("optimizer", "lr", "3e-4", 3e-4),  # YAML 1.1 reads this as a text
        ("train", "compile", True, "on"),  # and `on` as true
        ("train", "compile", False, "off"),
        ("train", "compile", "off", "off"),
        ("train", "deterministic", "Yes", True),
        ("train", "deterministic", "OFF", False),
        ("data", "split", 2024, "2024"),
    ],
)
def test_conversion(group: str, name: str, value: Any, expected: Any) -> None:
    found = getattr(getattr(from_dict(RunConfig, {group: {name: value}}), group), name)
    assert found == expected
    assert type(found) is type(expected)


def test_lists_become_tuples() -> None:
    data = from_dict(RunConfig, {"data": {"name": "text", "files": ["a", "b"]}}).data
    assert data.files == ("a", "b")


@pytest.mark.parametrize(
    ("group", "name", "value", "expected"),
    [
        ("train", "max_steps", "three", "is not a whole number"),
        ("train", "max_steps", 2.5, "is not a whole number"),
        ("train", "max_steps", True, "is not a whole number"),
        ("train", "max_steps", None, "is not a whole number"),
        ("train", "max_steps", float("inf"), "is not a whole number"),
        ("train", "max_steps", float("nan"), "is not a whole number"),
        ("train", "max_steps", [1], "is not a whole number"),
        ("train", "max_steps", {"a": 1}, "is not a whole number"),
        ("optimizer", "lr", True, "is not a number"),
        ("optimizer", "lr", "nan", "is not a finite number"),
        ("optimizer", "lr", float("inf"), "is not a finite number"),
        ("train", "deterministic", 1, "is not true or false"),
        ("train", "compile", 5, "is not one of auto, on, off"),
        ("train", "compile", [1], "is not one of auto, on, off"),
        ("data", "files", [1], "is not a list of texts"),
        ("data", "split", None, "is not a text; put it in quotes"),
        ("train", "learn", 1, "there is no such option"),
        ("train", "max_step", 1, "there is no such option; did you mean max_steps?"),
    ],
)
def test_what_cannot_be_converted(group: str, name: str, value: Any, expected: str) -> None:
    found = mistakes_of(lambda: from_dict(RunConfig, {group: {name: value}}))
    assert found == [f"{group}.{name}={written(value)}: {expected}"]


def test_all_mistakes_of_all_groups_at_once() -> None:
    plain = {"model": {"n_layer": 0, "n_head": "x"}, "data": {"name": "text"}, "trian": {}, "train": 5, "seed": -1}
    found = "\n".join(mistakes_of(lambda: from_dict(RunConfig, plain)))
    for start in ("model.n_layer=0:", "model.n_head=x:", "data.files=[]:", "trian={}:", "train=5:", "seed=-1:"):
        assert start in found
    assert found.count("\n") == 5


def test_a_combination_is_judged_only_among_good_values() -> None:
    plain = {"schedule": {"warmup_steps": 5000}, "train": {"max_steps": "many"}}
    assert mistakes_of(lambda: from_dict(RunConfig, plain)) == ["train.max_steps=many: is not a whole number"]
    plain["train"] = {"max_steps": 100}
    assert [text.partition(":")[0] for text in mistakes_of(lambda: from_dict(RunConfig, plain))] == [
        "schedule.warmup_steps=5000"
    ]


def test_nearest() -> None:
    known = ["optimizer.lr", "optimizer.matrix_lr", "train.batch_size", "data.path", "tokenizer.path", "model"]
    assert nearest("lr", known) == ["optimizer.lr"]
    assert nearest("train.lr", known) == ["optimizer.lr"]
    assert nearest("path", known) == ["data.path", "tokenizer.path"]
    assert nearest("bach_size", known) == ["train.batch_size"]
    assert nearest("modle", known) == ["model"]
    assert nearest("zzz", known) == []


@pytest.mark.parametrize("group", ["data", "tokenizer", "optimizer", "schedule"])
def test_files_and_choices_of_a_group_agree(group: str) -> None:
    kind = typing.get_type_hints(RunConfig)[group]
    files = {path.stem: yaml.safe_load(path.read_text()) or {} for path in (CONFIGS / group).glob("*.yaml")}
    name = kind.__dataclass_fields__["name"]
    assert set(files) == set(name.metadata["rule"].choices)
    for stem, content in files.items():
        assert content.get("name", name.default) == stem


@pytest.mark.parametrize("path", [p for p in CONFIGS.rglob("*.yaml") if p.parent.name in ("model", "optimizer")])
def test_a_file_holds_only_what_differs(path: Path) -> None:
    defaults = to_dict(RunConfig())[path.parent.name]
    for name, value in (yaml.safe_load(path.read_text()) or {}).items():
        assert name in defaults
        assert defaults[name] != value


def matrices(model: ModelConfig, vocabulary: int) -> int:
    """Weights of a decoder with tied embeddings, without norms and biases."""
    attention = 2 * model.n_embd * model.head_width * (model.n_head + model.kv_heads)
    mlp = (2 if model.dialect == "gpt2" else 3) * model.n_embd * model.hidden_width
    positions = model.context_length * model.n_embd if model.dialect == "gpt2" else 0
    return vocabulary * model.n_embd + positions + model.n_layer * (attention + mlp)


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("gpt2", 124.4), ("gpt2-medium", 354.8), ("gpt2-large", 774.0), ("gpt2-xl", 1557.6), ("modern", 124.4)],
)
def test_presets_have_the_published_size(preset: str, millions: float) -> None:
    content = yaml.safe_load((CONFIGS / "model" / f"{preset}.yaml").read_text())
    model = from_dict(ModelConfig, content)
    assert matrices(model, 50257) == pytest.approx(millions * 1e6, rel=0.005)
    assert model.context_length == 1024
