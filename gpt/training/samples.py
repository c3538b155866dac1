"""The texts that a model in training writes at each evaluation."""

from __future__ import annotations

from itertools import islice
from typing import Any

from gpt.config import RunConfig
from gpt.config.sampling import DEFAULT_TEMPERATURE
from gpt.inference.decode import Sample, generate
from gpt.inference.sampling import Sampling
from gpt.model.transformer import Decoder
from gpt.text.shards import Corpus
from gpt.text.streams import PairStream


def write_samples(model: Decoder, corpus: Corpus, config: RunConfig, count: int, first: int = 0) -> list[Sample]:
    """What the model writes now: samples number `first` … of the seed; [] for `train.sample_tokens=0`.

    The prompt is `train.sample_prompt`, or of pairs, where there is none, that of the first held-out ones. Raises
    `NotFinite` where the model gives no numbers.
    """
    train = config.train
    if not train.sample_tokens:
        return []
    prompts: list[Any] = [train.sample_prompt] * count
    if isinstance(corpus.val, PairStream) and not train.sample_prompt:
        held_out = [ids for ids, _ in islice(corpus.val.pairs(), count)]
        prompts = [held_out[i % len(held_out)] for i in range(count)]
    jobs = [(prompt, first + number) for number, prompt in enumerate(prompts)]
    try:
        *_, made = generate(
            model, corpus.tokenizer, jobs, Sampling(temperature=DEFAULT_TEMPERATURE),
            max_new_tokens=train.sample_tokens, seed=config.seed,
        )  # fmt: skip
    finally:
        model.train()
    return made
