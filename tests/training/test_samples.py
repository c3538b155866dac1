"""What a run has its model continue at evaluations, where no prompt is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt.config import DataConfig, TokenizerConfig
from gpt.options import UserError
from gpt.text.shards import Corpus, prepare
from gpt.training.metrics import read_lines
from gpt.training.run import train
from gpt.training.samples import held_out_prompts
from tests.training.conftest import MakeConfig


def corpus_of(tmp_path: Path, text: str, tokenizer: str = "byte", **options: object) -> Corpus:
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    data = {"name": "text", "files": (str(tmp_path / "book.txt"),), "prepared_dir": str(tmp_path / "prepared")}
    return prepare(DataConfig(**{**data, **options}), TokenizerConfig(name=tokenizer))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("end", "prompt"),
    [
        ("inside of it\n\nGREMIO:\nGood morrow\n" + "x" * 600, "GREMIO:"),
        ("\n  Good morrow, neighbour Baptista.\nGREMIO:\n", "Good morrow, neighbour"),
        ("\n床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。床前明月光\n\n", "床前明月光，疑是"),
        ("one line of words without an end " * 3, "one line of words"),
        (" \n" * 10, ""),
    ],
)
@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_of_one_long_text_it_is_a_line_that_is_held_out(tmp_path: Path, end: str, prompt: str, tokenizer: str) -> None:
    corpus = corpus_of(tmp_path, end[::-1] * 9 + end, tokenizer, val_fraction=0.1)
    assert held_out_prompts(corpus, 3) == [prompt]


def test_what_its_tokenizer_cannot_take_back_is_no_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise UserError("not in the vocabulary")

    corpus = corpus_of(tmp_path, "A C G T\n" * 100)
    monkeypatch.setattr(type(corpus.tokenizer), "encode", refuse)
    assert held_out_prompts(corpus, 1) == [""]


def test_of_many_documents_it_is_the_beginning_of_one(tmp_path: Path) -> None:
    text = "\n\n".join(f"poem number {number}" for number in range(200))
    assert held_out_prompts(corpus_of(tmp_path, text, documents="blank_line"), 3) == [""]


def test_it_is_what_a_run_samples(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("SHE:\nThe leaf falls.\n" * 300, encoding="utf-8")
    config = make_config(data={"files": [str(tmp_path / "book.txt")]}, train={"max_steps": 4})
    assert train(config) == 0
    samples = read_lines(Path(config.run_dir) / "samples.jsonl")
    assert [sample["prompt"] for sample in samples] == ["The leaf falls."]
    assert all(sample["text"].startswith("The leaf falls.") for sample in samples)
