"""Evaluation against a slow loop, and its independence of the batch size."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import random
from pathlib import Path

import pytest
import torch

from gpt.config import ModelConfig, RunConfig
from gpt.model.hardware import Hardware
from gpt.model.transformer import Decoder
from gpt.options import UserError
from gpt.text.batches import training_data
from gpt.text.shards import prepare
from gpt.text.streams import PairStream
from gpt.training.evaluation import Evaluation, compressors, evaluate

from .conftest import MakeConfig

CPU = Hardware(torch.device("cpu"), "fp32")


def trained(config: ModelConfig) -> Decoder:
    """A decoder whose predictions depend on the context, as those of fresh weights hardly do."""
    torch.manual_seed(0)
    model = Decoder(config, 257)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("max_tokens", [None, 1, 37])
def test_evaluation_is_that_of_a_slow_loop(make_config: MakeConfig, max_tokens: int | None) -> None:
    config = make_config(model={"dropout": 0.5})
    corpus = prepare(config.data, config.tokenizer)
    model = trained(config.model)
    tokens = corpus.val.read(0, len(corpus.val)).tolist()
    count = min(max_tokens or len(tokens), len(tokens) - 1)
    model.eval()
    total, n_bytes = 0.0, 0
    with torch.no_grad():
        for i in range(1, count + 1):
            start = (i - 1) // 16 * 16
            logits = model(torch.tensor([tokens[start:i]]))[0, -1].double()
            total -= logits.log_softmax(0)[tokens[i]].item()
            n_bytes += tokens[i] < 256
    model.train()
    for batch_size in (1, 7):
        found = evaluate(model, corpus.val, corpus.tokenizer, CPU, batch_size, max_tokens)
        assert found.n_tokens == count
        assert found.loss == pytest.approx(total / count, rel=1e-6)
        assert found.bits_per_byte == pytest.approx(total / math.log(2) / n_bytes, rel=1e-6)
    assert model.training


def test_compressors_see_the_same_bytes(make_config: MakeConfig) -> None:
    config = make_config()
    corpus = prepare(config.data, config.tokenizer)
    tokens = corpus.val.read(0, len(corpus.val)).tolist()
    text = bytes(token for token in tokens if token < 256)
    found = compressors(corpus.val, corpus.tokenizer)
    assert found is not None
    assert found["gzip -9"] == 8 * len(gzip.compress(text, 9)) / len(text)
    assert found["xz -9"] < 8
    few = compressors(corpus.val, corpus.tokenizer, max_tokens=100)
    assert few is not None
    assert few["gzip -9"] == 8 * len(gzip.compress(bytes(t for t in tokens[:101] if t < 256), 9)) / 100


def test_evaluation_without_known_bytes_takes_the_mean_of_the_split(make_config: MakeConfig) -> None:
    config = make_config()
    corpus = prepare(config.data, config.tokenizer)
    model = trained(config.model)
    exact = evaluate(model, corpus.val, corpus.tokenizer, CPU, 8)

    class WithoutBytes:
        token_bytes = None

    estimated = evaluate(model, corpus.val, WithoutBytes(), CPU, 8)  # type: ignore[arg-type]
    assert estimated.bits_per_byte == pytest.approx(exact.bits_per_byte, rel=1e-6)


@pytest.mark.parametrize("stride", [1, 5, 16])
def test_overlapping_windows_are_those_of_a_slow_loop(make_config: MakeConfig, stride: int) -> None:
    config = make_config()
    corpus = prepare(config.data, config.tokenizer)
    model = trained(config.model).eval()
    tokens = corpus.val.read(0, 101).tolist()
    total = 0.0
    with torch.no_grad():
        for i in range(1, 101):
            start = 0 if i <= 16 else -(-(i - 16) // stride) * stride  # of the first window that reaches so far
            total -= model(torch.tensor([tokens[start:i]]))[0, -1].double().log_softmax(0)[tokens[i]].item()
    for batch_size in (1, 7):
        found = evaluate(model, corpus.val, corpus.tokenizer, CPU, batch_size, 100, stride)
        assert (found.n_tokens, found.n_bytes) == (100, sum(token < 256 for token in tokens[1:]))
        assert found.loss == pytest.approx(total / 100, rel=1e-6)


def test_perplexity() -> None:
    assert Evaluation(math.log(50), 3, 3).perplexity == pytest.approx(50)
    assert Evaluation(1000, 3, 3).perplexity == math.inf
    assert math.isnan(Evaluation(math.nan, 3, 3).perplexity)


# --- pairs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs_config(make_config: MakeConfig, tmp_path: Path) -> RunConfig:
    """Pairs of which some completions are cut at the context of 16 tokens, and some prompts fill it."""
    chance = random.Random(1)
    file = tmp_path / "qa.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for number in range(80):
            prompt = "葉?" * chance.randrange(4) + str(number) * chance.randrange(4)
            lines.write(
                json.dumps({"q": prompt, "a": "leaf 根"[: chance.randrange(1, 7)] * chance.randrange(1, 3)}) + "\n"
            )
        lines.write(json.dumps({"q": "much too long a prompt", "a": "x"}) + "\n")
    options = {"name": "pairs", "files": [str(file)], "prompt": "{q}", "completion": "{a}", "val_fraction": 0.4}
    return make_config(data=options)


def slow_losses(model: Decoder, split: PairStream, end: int) -> list[list[torch.Tensor]]:
    """-log p of each completion token and end of text within the context, one pair at a time, without padding."""
    losses = []
    for prompt, completion in split.pairs():
        tokens = [*prompt, *completion, end][: model.config.context_length + 1]
        if len(tokens) > len(prompt):
            log_p = model(torch.tensor([tokens[:-1]]))[0].double().log_softmax(-1)
            losses.append([-log_p[i - 1, tokens[i]] for i in range(len(prompt), len(tokens))])
    return losses


@pytest.mark.parametrize("max_tokens", [None, 1, 37])
def test_only_completions_count(pairs_config: RunConfig, max_tokens: int | None) -> None:
    corpus = prepare(pairs_config.data, pairs_config.tokenizer)
    assert isinstance(corpus.val, PairStream)
    model = trained(pairs_config.model).eval()
    with torch.no_grad():
        losses = [loss.item() for pair in slow_losses(model, corpus.val, 256) for loss in pair][:max_tokens]
    for batch_size in (1, 7, 100):
        found = evaluate(model, corpus.val, corpus.tokenizer, CPU, batch_size, max_tokens)
        assert found.n_tokens == len(losses)
        assert found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    texts = [completion for _, completion in corpus.val.pairs()]
    roomy = trained(dataclasses.replace(pairs_config.model, context_length=64))
    found = evaluate(roomy, corpus.val, corpus.tokenizer, CPU, 8)
    assert (found.n_bytes, found.n_tokens) == (sum(map(len, texts)), sum(map(len, texts)) + len(texts))

    class WithoutBytes:
        token_bytes = None

    estimated = evaluate(roomy, corpus.val, WithoutBytes(), CPU, 8)  # type: ignore[arg-type]
    assert estimated.bits_per_byte == pytest.approx(found.bits_per_byte, rel=1e-6)
    assert compressors(corpus.val, corpus.tokenizer) is None


def test_the_gradient_of_a_batch_is_the_sum_over_its_pairs(pairs_config: RunConfig) -> None:
    corpus = prepare(pairs_config.data, pairs_config.tokenizer)
    assert isinstance(corpus.train, PairStream)
    model = trained(pairs_config.model).double()
    data = training_data(corpus.train, 16, seed=0, global_batch=8)
    for first in range(0, data.sequences_per_epoch, 5):
        inputs, targets = data.batch(first, min(5, data.sequences_per_epoch - first))
        model(torch.from_numpy(inputs), torch.from_numpy(targets)).backward()
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    for pair in slow_losses(model, corpus.train, 256):
        torch.stack(pair).sum().backward()
    expected = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_nothing_to_evaluate_is_said(pairs_config: RunConfig, make_config: MakeConfig) -> None:
    corpus = prepare(pairs_config.data, pairs_config.tokenizer)
    model = trained(make_config(model={"context_length": 1}).model)
    data = dataclasses.replace(pairs_config.data, prompt="? {q}")
    with pytest.raises(UserError, match=r"no held-out token counts with model\.context_length=1"):
        evaluate(model, prepare(data, pairs_config.tokenizer).val, corpus.tokenizer, CPU, 8)
    with pytest.raises(ValueError, match="stride"):
        evaluate(model, corpus.val, corpus.tokenizer, CPU, 8, stride=1)
