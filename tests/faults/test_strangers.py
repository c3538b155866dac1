"""Strangers' files: nothing in them is executed, leads elsewhere, or takes the machine's memory."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.lab import PREPARED, TRAIN, attempt, attempt_process, copy_of, make_stock
from tests.faults.spoil import MODEL, WEIGHTS, edit, inside, write
from tests.faults.strangers import (
    MARK,
    MODEL_FILES,
    PLACES,
    Place,
    executes,
    fault,
    opened,
    opening,
    plant,
    safetensors_header,
    trials,
    wrapped,
)

SCRIPT = "open('EXECUTED', 'w')\nclass Evil: pass\n"


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stock(tmp_path_factory.mktemp("stock"))


@pytest.fixture
def folder(stock: Path, tmp_path: Path) -> Path:
    return copy_of(stock, tmp_path / "case")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_the_plants_are_poisonous(tmp_path: Path) -> None:
    mark = tmp_path / MARK
    assert all(executes(name, data, mark) for name, data in wrapped(mark).items())


def check(place: Place, folder: Path, mark: Path) -> None:
    for command, outcome in opened(place, folder):
        assert fault(outcome, mark) == "", f"{command}: {outcome.said}"


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_no_pickle_beside_the_files_is_executed(place: Place, folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / MARK
    for form, data in list(wrapped(mark).items())[:3]:
        ours = [name for name in place.files if not name.endswith((".pt", ".pkl", ".bin", ".pth", ".ckpt", ".npy"))]
        plant(place, folder, tuple(f"{name}.{form.replace(' ', '')}.pkl" for name in ours), data)
    extra = tuple(name for name in place.files if name.endswith((".pt", ".pkl", ".pth", ".ckpt", ".npy")))
    plant(place, folder, extra, wrapped(mark)["torch"])
    for command, outcome in opened(place, folder):
        assert fault(outcome, mark) == "", f"{command}: {outcome.said}"
        assert outcome.status == 0, f"{command}: {outcome.said}"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2))
def test_no_pickle_in_a_file_is_executed(number: int, stock: Path, tmp_path: Path) -> None:
    mark = tmp_path / MARK
    for turn, (place, files, form, data) in enumerate(list(trials(mark))[number::12]):
        folder = copy_of(stock, tmp_path / str(turn) / "case")
        plant(place, folder, files, data)
        for command, outcome in opened(place, folder):
            assert fault(outcome, mark) == "", f"{command} with {form} as {files}: {outcome.said}"
        shutil.rmtree(folder)


@pytest.mark.parametrize("form", ["pickle", "torch", "older torch", "zip"])
def test_pickled_weights_are_refused_by_every_command(form: str, folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / MARK
    (folder / WEIGHTS).unlink()
    plant(PLACES[0], folder, ("pytorch_model.bin",), wrapped(mark)[form])
    for command, outcome in opened(PLACES[0], folder):
        assert fault(outcome, mark) == "", f"{command}: {outcome.said}"
        assert outcome.status == 2, f"{command}: {outcome.said}"
        assert "pytorch_model.bin" in outcome.err


def test_code_beside_a_model_is_not_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("modeling_evil.py", "tokenization_evil.py", "__init__.py", "custom_generate/generate.py", "evil.py"):
        write(f"model/{name}", SCRIPT)(folder)
    pointers = {
        "AutoConfig": "evil.Evil",
        "AutoModelForCausalLM": "modeling_evil.Evil",
        "AutoTokenizer": ["evil.Evil", None],
    }
    edit(MODEL, auto_map=pointers, trust_remote_code=True, custom_pipelines={"x": {"impl": "evil.Evil"}})(folder)
    edit("model/tokenizer_config.json", auto_map=pointers, tokenizer_class="Evil")(folder)
    for command, argv in opening("model"):
        outcome = attempt(command, list(argv), folder)
        assert outcome.status == 0, f"{command}: {outcome.said}"
        assert not list(folder.rglob(MARK))
    assert "auto_map" not in (folder / "out/tokenizer_config.json").read_text()
    assert "auto_map" not in (folder / "out/config.json").read_text()
    assert not any("evil" in name for name in sys.modules)
    assert not [path for path in (folder / "out").iterdir() if path.suffix == ".py"]


def test_a_run_carries_no_code_of_its_base(folder: Path) -> None:
    for name in MODEL_FILES:
        if name.endswith((".pt", ".pth", ".ckpt", "training_args.bin")):
            write(f"model/{name}", b"x")(folder)
    write("model/evil.py", SCRIPT)(folder)
    done = attempt("train", [*opening("model")[3][1], "lora.rank=2"], folder)
    assert done.status == 0, done.said
    kept = {path.name for path in (folder / "tuned/base").iterdir()}
    assert kept <= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    } | {"origin.json"}


@pytest.mark.parametrize(
    "template",
    ["{x.__class__}", "{x.__class__.__mro__}", "{x[0]}", "{0}", "{x!r}", "{x:>1000000000}", "{x.__init__.__globals__}"],
)
def test_a_template_reads_fields_and_nothing_else(template: str, folder: Path) -> None:
    write("x.jsonl", '{"x": "leaf"}\n')(folder)
    argv = [*TRAIN, "data=jsonl", "data.files=[x.jsonl]", f"data.template={template}", "run_dir=new"]
    argv = [each for each in argv if each not in ("data=text", "data.files=[book.txt]")]
    done = attempt("train", argv, folder)
    assert done.status == 2, done.said
    assert f"no field {template[1:-1]!r}, only 'x'" in done.err


LEADING = {
    "shards of an index": (
        write("model/model.safetensors.index.json", '{"weight_map": {"a": "../secret.safetensors"}}'),
        "checkpoint=model",
        "names '../secret.safetensors'",
    ),
    "a state's corpus": (
        inside(
            "run/checkpoints/step-00000002/trainer/state.json",
            lambda s: s["config"]["data"].update(files=["/dev/zero"]),
        ),
        "checkpoint=run",
        "is not a regular file",
    ),
}


@pytest.mark.parametrize("case", LEADING)
def test_no_path_leads_out_of_its_folder(case: str, folder: Path) -> None:
    spoil, checkpoint, says = LEADING[case]
    (folder / WEIGHTS).rename(folder / "secret.safetensors")
    spoil(folder)
    done = attempt("evaluate", [checkpoint, f"data.prepared_dir={PREPARED}"], folder)
    if case == "shards of an index":
        done = attempt("sample", [checkpoint], folder)
    assert done.status == 2, done.said
    assert says in done.err


def test_the_base_of_adapters_is_said(folder: Path) -> None:
    """A stranger's adapter may name any model of this machine: nothing there runs, and the user sees which it is."""
    (folder / "model").rename(folder / "elsewhere")
    (folder / "below").mkdir()
    inside("adapter/adapter_config.json", lambda c: c.update(base_model_name_or_path="below/../elsewhere"))(folder)
    done = attempt("sample", ["checkpoint=adapter", "max_new_tokens=2"], folder)
    assert done.status == 0, done.said
    assert "adapter adapts below/../elsewhere\n" in done.err


TERABYTES: dict[str, Callable[[Path], Any]] = {
    "a header": write(
        WEIGHTS,
        safetensors_header({"model.norm.weight": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}),
    ),
    "a header longer than memory": write(WEIGHTS, (2**40).to_bytes(8, "little") + b"{}"),
    "a vocabulary": edit(MODEL, vocab_size=2**36),
    "layers": edit(MODEL, num_hidden_layers=2**36),
    "a width": edit(MODEL, hidden_size=2**36, head_dim=2**35),
    "a context": edit(MODEL, max_position_embeddings=2**36),
    "ids of tokens": inside("model/tokenizer.json", lambda t: t["model"]["vocab"].update(é=2**32 - 2)),
    "a config": lambda folder: os.truncate(folder / MODEL, 2**40),
    "a tokenizer": lambda folder: os.truncate(folder / "model/tokenizer.json", 2**40),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space")
@pytest.mark.parametrize("claim", TERABYTES)
def test_a_claim_of_terabytes_is_refused_before_memory_is_asked_for(claim: str, folder: Path) -> None:
    TERABYTES[claim](folder)
    done = attempt_process("sample", ["checkpoint=model", "max_new_tokens=2"], folder, memory=4 * 2**30)
    assert done.status == 2, done.said
    assert "model" in done.err
    assert done.changed == ()


@pytest.mark.slow
def test_no_secret_reaches_a_file_or_the_console(folder: Path) -> None:
    secrets = {"WANDB_API_KEY": "5ec2e7" * 6 + "aaaa", "HF_TOKEN": "hf_" + "S3cr3t" * 6}
    run = [*TRAIN, "run_dir=new", "wandb.mode=offline"]
    commands = [
        ("train", run),
        ("sample", ["checkpoint=new", "output=made.jsonl"]),
        ("export", ["checkpoint=new", "output=out"]),
    ]
    for command, argv in commands:
        done = attempt_process(command, argv, folder, **secrets)
        assert done.status == 0, done.said
        assert not any(secret in done.out + done.err for secret in secrets.values())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in files)
    for path in files:
        assert not any(secret.encode() in path.read_bytes() for secret in secrets.values()), path
