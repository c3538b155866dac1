"""Fine-tuning end to end, with transformers as the maker of the initial model and the judge of the result."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gpt.composition import load_config
from gpt.config import ExportConfig, RunConfig, TokenizerConfig
from gpt.model.adapters import open_model, read_model_config
from gpt.model.hardware import Hardware
from gpt.options import UserError, defaults, from_dict, to_dict
from gpt.text.shards import prepare
from gpt.text.tokenizers import Tokenizer
from gpt.text.vocabularies import build_tokenizer
from gpt.training.checkpoints import CheckpointFolder
from gpt.training.command import train_command
from gpt.training.evaluation import evaluate
from gpt.training.export_checkpoint import export
from gpt.training.initial import adopt_model
from gpt.training.run import train
from gpt.training.trainer import Trainer
from train import COMMAND

from .conftest import MakeConfig

transformers = pytest.importorskip("transformers")
CPU = Hardware(torch.device("cpu"), "fp32")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A GPT-2 of transformers, briefly trained there on words, and saved with `save_pretrained`."""
    folder = tmp_path / "base"
    folder.mkdir()
    build_tokenizer(TokenizerConfig(name="byte")).save(folder)
    torch.manual_seed(0)
    shape = {"vocab_size": 257, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, bos_token_id=256, eos_token_id=256))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer("rain falls and the sun grows " * 40)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(10):
        batch = torch.stack([ids[i : i + 32] for i in range(step, step + 8)])
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def finetune_config(base: Path, run_dir: Path, corpus: Path, **changes: Any) -> RunConfig:
    values = defaults(RunConfig) | {"init_from": str(base), "run_dir": str(run_dir)}
    adopt_model(values, {"init_from", "run_dir"})
    values["data"] |= {"name": "text", "files": [str(corpus)], "prepared_dir": str(run_dir.parent / "prepared")}
    values["optimizer"] |= {"name": "adamw", "lr": 3e-3}
    values["train"] |= {"max_steps": 12, "batch_size": 4, "eval_every": 4, "log_every": 1, "sample_tokens": 5}
    values["train"] |= {"precision": "fp32", "device": "cpu", "eval_tokens": 200}
    for group, options in changes.items():
        values[group] = values[group] | options
    return from_dict(RunConfig, values)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("lora", [{"rank": 0}, {"rank": 4}])
def test_a_model_of_transformers_is_tuned_exported_and_continued_by_transformers(
    base: Path, tmp_path: Path, corpus_files: Path, lora: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    config = finetune_config(base, run_dir, corpus_files, lora=lora, optimizer={"name": "adamw", "lr": 0.01})
    assert train(config) == 0
    losses = {line["step"]: line["val/loss"] for line in metrics(run_dir) if "val/loss" in line}
    assert min(losses, key=losses.__getitem__) > 0
    assert min(losses.values()) < losses[0]
    shown = capsys.readouterr().err
    assert "Held-out text:" in shown
    assert shown.count("before:") == shown.count("after:") == 3

    output = tmp_path / "out"
    assert export(ExportConfig(checkpoint=str(run_dir), output=str(output))) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(output)
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    text = "rain falls"
    made = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(made[0]).startswith(text)
    assert made.shape == (1, len(text) + 8)
    assert not (output / "trainer").exists()
    card = (output / "README.md").read_text(encoding="utf-8")
    for fact in ("data", "steps", "validation loss", "python train.py", f"init_from={base}"):
        assert fact in card, fact


def test_the_base_is_scored_as_transformers_scores_it(base: Path, tmp_path: Path, corpus_files: Path) -> None:
    run_dir = tmp_path / "run"
    config = finetune_config(base, run_dir, corpus_files, train={"eval_tokens": 96, "max_steps": 1})
    train(config)
    (prepared,) = (path for path in (tmp_path / "prepared").iterdir() if path.is_dir())
    ids = torch.frombuffer(bytearray((prepared / "val-00000.bin").read_bytes()), dtype=torch.uint16)[:97].long()
    model = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        logits = torch.cat([model(ids[i : i + 32][None]).logits[0] for i in (0, 32, 64)])
    expected = torch.nn.functional.cross_entropy(logits, ids[1:97])
    assert metrics(run_dir)[0]["step"] == 0
    assert metrics(run_dir)[0]["val/loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_where_tuning_only_harms_the_base_stays_the_best(base: Path, tmp_path: Path, corpus_files: Path) -> None:
    run_dir = tmp_path / "run"
    changes = {"train": {"early_stop_patience": 2, "eval_every": 1}, "optimizer": {"name": "adamw", "lr": 3.0}}
    assert train(finetune_config(base, run_dir, corpus_files, **changes)) == 0
    assert (run_dir / "checkpoints" / "best").resolve().name == "step-00000000"
    ours = load_file(run_dir / "checkpoints" / "best" / "model.safetensors")
    theirs = load_file(base / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() & theirs.keys())
    assert metrics(run_dir)[-1]["step"] == 2  # patience


@pytest.mark.parametrize("lora", [{"rank": 0}, {"rank": 2}])
def test_a_continued_run_ends_with_the_same_weights(
    base: Path, tmp_path: Path, corpus_files: Path, lora: dict[str, int]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    schedule = {"schedule": {"name": "constant", "warmup_steps": 0}, "lora": lora}
    train(finetune_config(base, whole, corpus_files, **schedule))
    train(finetune_config(base, parts, corpus_files, **schedule, train={"max_steps": 8}))
    train(finetune_config(base, parts, corpus_files, **schedule))
    name = "adapter_model.safetensors" if lora["rank"] else "model.safetensors"
    ours, theirs = (load_file(run / "checkpoints" / "step-00000012" / name) for run in (whole, parts))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_full_run_goes_on_without_its_initial_model(base: Path, tmp_path: Path, corpus_files: Path) -> None:
    run_dir = tmp_path / "run"
    train(finetune_config(base, run_dir, corpus_files, train={"max_steps": 4}))
    base.rename(tmp_path / "elsewhere")
    train(finetune_config(base, run_dir, corpus_files, train={"max_steps": 8}))
    assert metrics(run_dir)[-1]["step"] == 8


def test_adapters_outlive_the_checkpoint_that_they_started_from(
    make_config: MakeConfig, tmp_path: Path, corpus_files: Path
) -> None:
    """The base is a run that trains on, and prunes the step that it was; then the tuned run moves house."""
    start = {"train": {"max_steps": 4, "eval_every": 1, "keep_checkpoints": 1, "sample_tokens": 0}}
    base_run, run_dir = make_config("first", **start), tmp_path / "tuned"
    train(base_run)
    steps = {"sample_tokens": 0, "eval_every": 1}
    config = finetune_config(Path(base_run.run_dir), run_dir, corpus_files, lora={"rank": 2}, train=steps)
    train(replace(config, train=replace(config.train, max_steps=2)))
    before = load_file(run_dir / "base" / "model.safetensors")
    start["train"]["max_steps"] = 8
    train(make_config("first", **start))
    assert not (Path(base_run.run_dir) / "checkpoints" / "step-00000004").exists()
    assert train(replace(config, train=replace(config.train, max_steps=4))) == 0
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in load_file(run_dir / "base/model.safetensors").items()
    )

    logits = [
        open_model(step).eval()(torch.arange(16)[None]) for step in sorted((run_dir / "checkpoints").glob("step-*"))
    ]
    run_dir.rename(tmp_path / "elsewhere")
    shutil.rmtree(base_run.run_dir)
    moved = sorted((tmp_path / "elsewhere" / "checkpoints").glob("step-*"))
    assert len(moved) == len(logits) >= 2
    for step, expected in zip(moved, logits, strict=True):
        assert torch.equal(open_model(step).eval()(torch.arange(16)[None]), expected)


def test_a_refused_start_leaves_another_run_as_it_was(
    base: Path, make_config: MakeConfig, tmp_path: Path, corpus_files: Path
) -> None:
    run_dir, steps = tmp_path / "run", {"sample_tokens": 0, "max_steps": 2}
    config = finetune_config(base, run_dir, corpus_files, train=steps)
    train(config)
    other = make_config("other", train=steps)
    train(other)
    with pytest.raises(UserError, match="holds another run") as refused:
        train(finetune_config(Path(other.run_dir), run_dir, corpus_files, lora={"rank": 2}, train=steps))
    assert not (run_dir / "base").exists()
    *_, words = str(refused.value).splitlines()
    continued = load_config(COMMAND, shlex.split(words.replace("train.max_steps=2", "train.max_steps=3"))[2:])
    assert continued.train.max_steps == 3
    assert train(continued) == 0
    assert CheckpointFolder(run_dir).steps() == [2, 3]


def test_a_cut_context_is_that_of_the_adapters(base: Path, tmp_path: Path, corpus_files: Path) -> None:
    run_dir = tmp_path / "run"
    config = finetune_config(base, run_dir, corpus_files, lora={"rank": 2}, model={"context_length": 8})
    train(config)
    model = open_model(run_dir / "checkpoints" / "best")
    assert model.config.context_length == read_model_config(run_dir / "checkpoints" / "best")[0].context_length == 8
    found = evaluate(model, prepare(config.data, config.tokenizer).val, Tokenizer.load(base), CPU, 4, 200)
    assert found.loss == pytest.approx(
        min(line["val/loss"] for line in metrics(run_dir) if "val/loss" in line), rel=1e-6
    )


def test_a_kill_before_the_base_is_saved_leaves_no_trace_in_the_metrics(
    base: Path, tmp_path: Path, corpus_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    config = finetune_config(base, run_dir, corpus_files, train={"max_steps": 2, "eval_every": 2})
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config)
    train(config)
    assert [line["step"] for line in metrics(run_dir)] == [0, 1, 2, 2]
    samples = [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in samples] == [0, 0, 0, 2]


def test_the_same_model_by_another_name_is_the_same_run(base: Path, tmp_path: Path, corpus_files: Path) -> None:
    run_dir = tmp_path / "run"
    config = finetune_config(base, run_dir, corpus_files, train={"max_steps": 1, "sample_tokens": 0})
    train(config)
    again = replace(config, init_from=f"{base.parent}/./{base.name}/")
    assert train(replace(again, train=replace(again.train, max_steps=2))) == 0
    assert metrics(run_dir)[-1]["step"] == 2


def test_the_command_on_the_card_of_a_tuned_model_gives_the_same_configuration(
    base: Path, tmp_path: Path, corpus_files: Path
) -> None:
    (corpus_files.parent / "a.txt").write_text("words")
    argv = ["data=text", f"data.files={corpus_files}", f"init_from={base}", "run_dir=x", "train.max_steps=700"]
    for more in ([], ["lora.rank=2"], ["optimizer=muon", "model.context_length=8", "optimizer.lr=0.015"]):
        config = load_config(COMMAND, [*argv, *more])
        words = shlex.split(train_command(to_dict(config)))
        assert load_config(COMMAND, [*words[2:], "run_dir=x"]) == config


def test_prepare_uses_the_tokenizer_of_the_initial_model(base: Path, tmp_path: Path, corpus_files: Path) -> None:
    options = [f"init_from={base}", "data=text", f"data.files={corpus_files}", f"data.prepared_dir={tmp_path / 'p'}"]
    folder = Path(command("data/prepare.py", *options).strip())
    assert Tokenizer.load(folder).fingerprint == Tokenizer.load(base).fingerprint


def test_max_epochs_ends_the_run(base: Path, tmp_path: Path, corpus_files: Path) -> None:
    run_dir = tmp_path / "run"
    config = finetune_config(base, run_dir, corpus_files, train={"max_epochs": 0.1, "max_steps": 1000})
    assert train(config) == 0
    (prepared,) = (path for path in (tmp_path / "prepared").iterdir() if path.is_dir())
    n_tokens = json.loads((prepared / "meta.json").read_text())["splits"]["train"]["tokens"]
    windows = (n_tokens - 1 - 31) // 32
    assert metrics(run_dir)[-1]["step"] == -(-windows // 40)  # a tenth of an epoch, in batches of four


def test_adapters_without_their_base_say_so(base: Path, tmp_path: Path, corpus_files: Path) -> None:
    run_dir, alone = tmp_path / "run", tmp_path / "alone"
    train(finetune_config(base, run_dir, corpus_files, lora={"rank": 2}, train={"max_steps": 2}))
    shutil.copytree(run_dir / "checkpoints" / "best", alone)
    export(ExportConfig(checkpoint=str(alone), output=str(tmp_path / "out")))
    run_dir.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"base_model_name_or_path") as error:
        export(ExportConfig(checkpoint=str(alone), output=str(tmp_path / "out again")))
    assert str(run_dir / "base") in str(error.value)
    assert not (tmp_path / "out again").exists()


SHAKESPEARE = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinyshakespeare.txt"


@pytest.mark.slow
@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="needs tiny Shakespeare in ../shared/data")
@pytest.mark.usefixtures("gpt2_vocabulary")
def test_a_gpt2_of_transformers_learns_shakespeare_here_and_goes_on_there(tmp_path: Path) -> None:
    """GPT-2's own vocabulary and layout, trained briefly by transformers, tuned by the commands, continued there."""
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    build_tokenizer(TokenizerConfig(name="gpt2")).save(base)
    text = SHAKESPEARE.read_text(encoding="utf-8")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_positions=128, n_embd=128, n_layer=4, n_head=4))
    ids = torch.tensor(transformers.AutoTokenizer.from_pretrained(base)(text[:200_000])["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(60):
        batch = torch.stack([ids[i : i + 128] for i in range(step * 512, step * 512 + 512, 128)])
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(base)

    options = [f"data.files={SHAKESPEARE}", "data=text", f"init_from={base}", f"run_dir={tmp_path / 'run'}"]
    options += [f"data.prepared_dir={tmp_path / 'prepared'}", "train.max_steps=30", "optimizer.lr=1e-3"]
    command("train.py", *options, "train.eval_tokens=8192", "train.eval_every=15")
    losses = [line["val/loss"] for line in metrics(tmp_path / "run") if "val/loss" in line]
    assert min(losses) < losses[0] - 0.3
    found = command("evaluate.py", f"checkpoint={tmp_path / 'run'}", "max_tokens=8192")
    assert json.loads(found)["loss"] == pytest.approx(min(losses), rel=1e-5)
    command("export.py", f"checkpoint={tmp_path / 'run'}", f"output={out}")
    tuned = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    prompt = tokenizer("ROMEO:\n", return_tensors="pt")
    made = tokenizer.decode(tuned.generate(**prompt, max_new_tokens=40, do_sample=False)[0])
    assert made.startswith("ROMEO:\n")
    ours = command("sample.py", f"checkpoint={out}", "prompt=ROMEO:\n", "temperature=0", "max_new_tokens=40")
    assert ours.removesuffix("\n") == made.removesuffix("<|endoftext|>")


def command(script: str, *options: str) -> str:
    """What a command prints on standard output."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, root / script, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
