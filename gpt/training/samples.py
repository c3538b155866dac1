"""The texts that a model in training writes at each evaluation."""

from __future__ import annotations

from itertools import islice
from typing import Any

from gpt.config import RunConfig
from gpt.config.sampling import DEFAULT_TEMPERATURE
from gpt.inference.decode import Sample, generate
from gpt.inference.sampling import Sampling
from gpt.model.transformer import Decoder
from gpt.options import UserError
from gpt.text.shards import Corpus
from gpt.text.streams import PairStream

MANY = 100  # documents from which on a model learns how one begins
LOOKED_AT = 512  # tokens, for a line
LONGEST_PROMPT = 24  # characters


def write_samples(model: Decoder, corpus: Corpus, config: RunConfig, count: int, first: int = 0) -> list[Sample]:
    """What the model writes now: samples number `first` … of the seed; [] for `train.sample_tokens=0`.

    The prompt is `train.sample_prompt`, or where there is none, `held_out_prompts`. Raises `NotFinite` where the model
    gives no numbers.
    """
    train = config.train
    if not train.sample_tokens:
        return []
    prompts = [train.sample_prompt] if train.sample_prompt else held_out_prompts(corpus, count)
    jobs: list[tuple[Any, int]] = [(prompts[number % len(prompts)], first + number) for number in range(count)]
    try:
        *_, made = generate(
            model, corpus.tokenizer, jobs, Sampling(temperature=DEFAULT_TEMPERATURE),
            max_new_tokens=train.sample_tokens, seed=config.seed,
        )  # fmt: skip
    finally:
        model.train()
    return made


def held_out_prompts(corpus: Corpus, count: int) -> list[str] | list[list[int]]:
    """What to have continued, at most `count`: of pairs the first prompts; a line of a text of few documents, as the
    model sees hardly any begin; else nothing, which begins a document."""
    if isinstance(corpus.val, PairStream):
        return [ids for ids, _ in islice(corpus.val.pairs(), count)]
    return [first_line(corpus) if corpus.train.n_documents < MANY else ""]


def first_line(corpus: Corpus) -> str:
    """The first words of the first held-out line that is whole; "" where there is none."""
    tokenizer = corpus.tokenizer
    ids = corpus.val.read(0, min(len(corpus.val), LOOKED_AT)).tolist()
    text = tokenizer.decode([one for one in ids if one not in tokenizer.special_ids])
    lines = [line.strip() for line in text.replace("\ufffd", "").split("\n")]  # where the last character is cut
    line = next(filter(None, [*lines[1:-1], *lines]), "")
    if len(line) > LONGEST_PROMPT:
        words = line[: LONGEST_PROMPT + 1].rpartition(" ")[0]
        line = words or line[: LONGEST_PROMPT // 3]  # Chinese says as much in fewer characters
    try:
        tokenizer.encode(line)
    except UserError:  # what a stranger's tokenizer decodes is not always text of its own
        return ""
    return line
