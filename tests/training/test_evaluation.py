"""Evaluation against a slow loop, and its independence of the batch size."""

from __future__ import annotations

import gzip
import math

import pytest
import torch

from gpt.model.hardware import Hardware
from gpt.model.transformer import Decoder
from gpt.text.shards import prepare
from gpt.training.evaluation import compressors, evaluate

from .conftest import MakeConfig

CPU = Hardware(torch.device("cpu"), "fp32")


@pytest.mark.parametrize("max_tokens", [None, 1, 37])
def test_evaluation_is_that_of_a_slow_loop(make_config: MakeConfig, max_tokens: int | None) -> None:
    config = make_config(model={"dropout": 0.5})
    corpus = prepare(config.data, config.tokenizer)
    model = Decoder(config.model, 257)
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
    model = Decoder(config.model, 257)
    exact = evaluate(model, corpus.val, corpus.tokenizer, CPU, 8)

    class WithoutBytes:
        token_bytes = None

    estimated = evaluate(model, corpus.val, WithoutBytes(), CPU, 8)  # type: ignore[arg-type]
    assert estimated.bits_per_byte == pytest.approx(exact.bits_per_byte, rel=1e-6)
