"""Models whose tokenizer puts a token before each text: prompts and continuations as transformers has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import models, processors

from gpt.config import DataConfig, TokenizerConfig
from gpt.inference.beam import beam_search
from gpt.inference.decode import generate, prompt_tokens
from gpt.inference.sampling import Sampling
from gpt.model.huggingface import save_model
from gpt.model.transformer import Decoder
from gpt.text.shards import prepare
from gpt.text.streams import PairStream
from gpt.text.tokenizers import Tokenizer

from .conftest import varied_decoder

transformers = pytest.importorskip("transformers")
PROMPTS = ("leaf", "a leaf is green", "")
NEW = 16


def llama(folder: Path) -> None:
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *map(chr, range(32, 127))])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def bert(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(chr, range(33, 127)), *(f"##{chr(c)}" for c in range(97, 123))]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))


@pytest.fixture(params=[llama, bert], ids=lambda make: make.__name__)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Tokenizer, Decoder]:
    """A model folder, and what is in it."""
    make: Callable[[Path], None] = request.param
    make(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    model = varied_decoder(tokenizer.vocab_size, dialect="llama", tie_embeddings=False)
    save_model(model, tmp_path, tokenizer.end_of_text, begin_of_text=tokenizer.begin_of_text)
    return tmp_path, tokenizer, model


def their_prompt(folder: Path, tokenizer: Tokenizer, prompt: str) -> list[int]:
    """As transformers encodes it, less what it appends."""
    ids: list[int] = transformers.AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"]
    return ids[:-1] if ids[-1] == tokenizer.end_of_text else ids


def test_prompts_and_greedy_texts_are_those_of_transformers(opened: tuple[Path, Tokenizer, Decoder]) -> None:
    folder, tokenizer, model = opened
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert theirs.config.bos_token_id == tokenizer.prefix[0] != tokenizer.end_of_text
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0}
    for prompt in PROMPTS:
        ids = their_prompt(folder, tokenizer, prompt)
        assert prompt_tokens(tokenizer, prompt) == ids
        made = theirs.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **options)
        expected = tokenizer.decode(made[0, len(ids) :].tolist())
        (*_, (sample,)) = generate(model, tokenizer, [(prompt, 0)], Sampling(temperature=0), max_new_tokens=NEW)
        assert (sample.prompt, sample.text) == (prompt, expected)
        (*_, (of_ids,)) = generate(model, tokenizer, [(ids, 0)], Sampling(temperature=0), max_new_tokens=NEW)
        assert of_ids.text == expected
        ((beam,),) = beam_search(model, tokenizer, [prompt], num_beams=1, num_return=1, max_new_tokens=NEW)
        assert beam.text == expected


def test_a_prompt_is_sampled_as_it_was_trained(opened: tuple[Path, Tokenizer, Decoder], tmp_path: Path) -> None:
    folder, tokenizer, _ = opened
    rows = [{"q": prompt, "a": "yes"} for prompt in PROMPTS]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(
        name="pairs",
        files=(str(tmp_path / "qa.jsonl"),),
        prompt="{q}",
        completion="{a}",
        prepared_dir=str(tmp_path / "prepared"),
    )
    corpus = prepare(data, TokenizerConfig(name="huggingface", path=str(folder)), whole=True)
    assert isinstance(corpus.val, PairStream)
    assert [ids for ids, _ in corpus.val.pairs()] == [prompt_tokens(tokenizer, prompt) for prompt in PROMPTS]


def test_ids_are_taken_as_they_are(opened: tuple[Path, Tokenizer, Decoder]) -> None:
    _, tokenizer, _ = opened
    assert prompt_tokens(tokenizer, [5, 6]) == [5, 6]
    assert prompt_tokens(tokenizer, []) == prompt_tokens(tokenizer, "") == list(tokenizer.prefix)
