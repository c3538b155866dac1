"""A checkpoint is a model and its tokenizer, wherever the latter is."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.config import LoRAConfig, TokenizerConfig
from gpt.model import opening
from gpt.model.adapters import save_adapters
from gpt.model.find import find_model
from gpt.model.huggingface import load_model, save_model
from gpt.model.lora import add_adapters
from gpt.model.opening import find_tokenizer, open_checkpoint, read_checkpoint
from gpt.model.transformer import Decoder
from gpt.options import UserError
from gpt.text.vocabularies import build_tokenizer

from .conftest import make_decoder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model folder with the tokenizer of bytes."""
    folder = tmp_path / "base"
    tokenizer = build_tokenizer(TokenizerConfig(name="byte"))
    tokenizer.save(folder)
    save_model(Decoder(make_decoder().config, tokenizer.vocab_size), folder, tokenizer.end_of_text)
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """An adapter folder as PEFT writes it: without tokenizer."""
    model = load_model(base)
    add_adapters(model, LoRAConfig(rank=2))
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_adapters(model, folder, str(base))
    return folder


def test_an_adapter_folder_without_tokenizer_has_that_of_its_base(base: Path, adapter: Path) -> None:
    assert find_tokenizer(base) == base
    assert find_tokenizer(adapter) == base
    folder, model, tokenizer = open_checkpoint(str(adapter))
    assert folder == adapter
    assert tokenizer.name == "byte"
    x = torch.arange(12)[None]
    assert torch.equal(model.eval()(x), load_model(base).eval()(x))  # adapters that have learned nothing yet


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "vocab.txt"])
def test_a_tokenizer_beside_the_adapters_comes_first(name: str, adapter: Path) -> None:
    (adapter / name).touch()
    assert find_tokenizer(adapter) == adapter


def test_no_tokenizer_anywhere_is_said_of_the_base(base: Path, adapter: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    with pytest.raises(UserError, match=f"^{base}: no tokenizer.json there"):
        open_checkpoint(str(adapter))


class Run:
    """A run folder whose checkpoints are copies of one model, told from one another by a weight and a special token."""

    def __init__(self, path: Path, base: Path) -> None:
        self.path, self.base = path / "checkpoints", base
        self.path.mkdir(parents=True)
        self.step = 0
        self.advance()

    def advance(self) -> None:
        """Publish the next checkpoint, make it the best, and delete all others, as with keep_checkpoints=1."""
        self.step += 1
        folder = self.path / f"step-{self.step:08d}"
        model = load_model(self.base)
        torch.nn.init.constant_(model.get_parameter("embed.weight"), self.step)
        partial = self.path / "partial"
        shutil.copytree(self.base, partial)
        save_model(model, partial, end_of_text=256)
        (partial / "number").write_text(str(self.step))
        partial.rename(folder)
        (self.path / "new").symlink_to(folder.name)
        (self.path / "new").replace(self.path / "best")
        for other in self.path.glob("step-*"):
            if other != folder:
                gone = other.rename(self.path / "partial-old")
                shutil.rmtree(gone)


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Run:
    return Run(tmp_path / "run", base)


def number_of(model: Decoder) -> int:
    return int(model.get_parameter("embed.weight")[0, 0])


def advance_before(
    owner: Any, name: str, run: Run, monkeypatch: pytest.MonkeyPatch, calls: int = 1
) -> Callable[[], int]:
    """Have the run go on just before the first `calls` calls of a function. Returns how often it was called."""
    function, seen = getattr(owner, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        if len(seen) <= calls:
            run.advance()
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return lambda: len(seen)


@pytest.mark.parametrize("place", ["gpt.model.opening.find_tokenizer", "gpt.model.opening.open_model",
    "gpt.model.huggingface.matching_tensors", "gpt.model.huggingface.copy_weights"])  # fmt: skip
def test_a_checkpoint_deleted_while_it_is_read_is_replaced_by_the_next(
    place: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, name = place.rpartition(".")
    count = advance_before(importlib.import_module(module), name, run, monkeypatch)
    loaded: list[Path] = []
    load = opening.Tokenizer.load
    monkeypatch.setattr(opening.Tokenizer, "load", lambda folder: loaded.append(folder) or load(folder))
    folder, model, _ = open_checkpoint(str(run.path.parent))
    assert folder == loaded[-1] == run.path / "step-00000002"
    assert number_of(model) == 2
    assert count() > 1


def test_a_run_that_goes_on_leaves_what_was_opened(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`best` moves, and its former checkpoint stays: tokenizer and weights are still of one."""
    monkeypatch.setattr(shutil, "rmtree", lambda path: Path(path).rename(run.path / "step-00000001"))
    advance_before(opening, "open_model", run, monkeypatch)
    folder, model, _ = open_checkpoint(str(run.path.parent))
    assert (folder.name, number_of(model), run.step) == ("step-00000001", 1, 2)


def test_a_link_that_moves_while_it_is_followed_is_followed_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    is_file = Path.is_file
    looks: list[Path] = []

    def look(path: Path) -> bool:
        looks.append(path)
        return len(looks) > 2 and is_file(path)  # at first it leads to what is just deleted

    monkeypatch.setattr(Path, "is_file", look)
    assert find_model(run.path.parent) == run.path / "best"


def test_a_run_faster_than_any_reader_is_told_as_such(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    count = advance_before(opening, "open_model", run, monkeypatch, calls=99)
    with pytest.raises(UserError, match=r"deleted faster than they can be read.*train\.keep_checkpoints"):
        open_checkpoint(str(run.path.parent))
    assert count() == opening.ATTEMPTS


def test_what_is_wrong_with_a_folder_that_stays_is_said_at_once(run: Run) -> None:
    (run.path / "best" / "model.safetensors").unlink()
    calls: list[Path] = []

    def read(folder: Path) -> None:
        calls.append(folder)
        opening.open_folder(folder)

    with pytest.raises(UserError, match=r"step-00000001 holds no weights"):
        read_checkpoint(str(run.path.parent), read)
    assert calls == [run.path / "step-00000001"]
