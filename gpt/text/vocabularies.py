"""New tokenizers: bytes, characters, byte-pair encoding trained on the corpus, released GPT-2, somebody else's.

Byte-pair encoding: Sennrich et al. 2016 (https://arxiv.org/abs/1508.07909), on bytes as GPT-2 does. Each is built as a
`tokenizers` object, so that it can be written as tokenizer.json.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from gpt.config import TokenizerConfig
from gpt.options import UserError
from gpt.text.encoders import BYTE_OF, CHARACTER_OF, CHARACTER_PATTERN, NEWLEAF_PATTERN
from gpt.text.tokenizers import END_OF_TEXT, Tokenizer

# What tiktoken's own "gpt2" reads, so one download serves both.
GPT2_MERGES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
LONGEST_WORD = 1000
_LONG_WORD = re.compile(rf"[^\W\d_]{{{LONGEST_WORD}}}|\s{{{LONGEST_WORD}}}|(?:[^\w\s]|_){{{LONGEST_WORD}}}")
_LONG_BLANK = re.compile(rf"\s{{{LONGEST_WORD}}}")
# English or code up to so many MB of text → tokens of a trained BPE.
_LADDER_MB = ((0.125, 512), (2, 1024), (8, 2048), (32, 4096), (256, 8192), (2048, 16384), (math.inf, 32768))


def default_vocab_size(n_bytes: int, n_common_characters: int) -> int:
    """How many tokens a BPE gets when nobody says: by the corpus's size, with room for its common characters.

    `n_bytes` of UTF-8 text climb the ladder above. A script with thousands of characters, such as Chinese, gets one
    token for each common character (seen ten times or more), the 256 bytes, and half the ladder's number for words.
    """
    by_size = next(size for limit, size in _LADDER_MB if n_bytes <= limit * 1e6)
    by_script = 128 * math.ceil((n_common_characters + 257 + by_size / 2) / 128)
    return max(by_size, by_script) if n_common_characters > 1000 else by_size


def training_bytes(vocab_size: int) -> int:
    """UTF-8 bytes of text to train a BPE of `vocab_size` on: 500 a token, from 4 MB to 64 MB.

    More costs time in proportion and buys little: 4,096 tokens from 4 MB of 11 MB of Python need 0.5 % more tokens than
    from all of it, and 8,192 from 4 MB of 13 MB of Chinese poems 0.2 %.
    """
    return min(max(500 * vocab_size, 4_000_000), 64_000_000)


def build_tokenizer(
    config: TokenizerConfig,
    *,
    characters: Iterable[str] = (),
    texts: Callable[[], Iterable[str]] | None = None,
    vocab_size: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Tokenizer:
    """The tokenizer that `config` asks for.

    char needs `characters`, the distinct characters of the corpus; bpe needs `texts`, which yields training text, and
    `vocab_size` where the configuration leaves it open; it trains no more than either says. Raises UserError where a
    released tokenizer is out of reach.
    """
    if config.name == "huggingface":
        try:
            return Tokenizer.load(Path(config.path or "").expanduser())
        except UserError as error:
            raise UserError(f"tokenizer.path={config.path}: {error}") from None
    if config.name == "byte":
        backend = byte_level([], pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    elif config.name == "char":
        backend = _characters(characters)
    elif config.name == "gpt2":
        backend = _gpt2()
    else:
        asked = config.vocab_size or vocab_size
        if texts is None or asked is None:
            raise ValueError("a BPE needs texts and vocab_size")
        backend = train_bpe(texts(), min(asked, vocab_size or asked))
        got = backend.get_vocab_size()
        if config.vocab_size and got < asked:
            report(f"The training text holds only {got:,} tokens, not the {asked:,} of tokenizer.vocab_size.")
    return Tokenizer(backend, END_OF_TEXT)


def byte_level(
    merges: list[tuple[str, str]], pre_tokenizer: pre_tokenizers.PreTokenizer, order: Iterable[str] | None = None
) -> tokenizers.Tokenizer:
    """A byte-level BPE: bytes first (by value, or in `order`), then merges in order, end of text last."""
    first = list(order) if order else [CHARACTER_OF[byte] for byte in range(256)]
    vocab = {token: index for index, token in enumerate([*first, *(left + right for left, right in merges)])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return backend


def train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Train a byte-level BPE of at most `vocab_size` tokens, end of text included."""
    from tokenizers import trainers

    split = pre_tokenizers.Split(Regex(NEWLEAF_PATTERN), "isolated")
    words = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = words
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=sorted(BYTE_OF), show_progress=False, special_tokens=[]
    )
    learner.train_from_iterator((part for text in texts for part in with_short_words(text)), trainer)
    # The trainer lists a token again where a second pair makes it. Only the first pair can ever come up (encoders.py).
    merges: dict[str, tuple[str, str]] = {}
    for left, right in _merges(learner):
        merges.setdefault(left + right, (left, right))
    return byte_level(list(merges.values()), words)


def with_short_words(text: str) -> Iterator[str]:
    """`text`, cut inside words (runs of letters, of blanks, of signs) of more than `LONGEST_WORD` characters.

    The trainer takes time by the square of a word's length: a million letters of DNA would take it an hour.
    """
    if max(map(len, text.split()), default=0) < LONGEST_WORD and not _LONG_BLANK.search(text):  # quick to see
        yield text
        return
    start = 0
    for word in _LONG_WORD.finditer(text):
        yield text[start : word.end()]
        start = word.end()
    yield text[start:]


def _merges(backend: tokenizers.Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]


def _characters(characters: Iterable[str]) -> tokenizers.Tokenizer:
    vocab = {character: index for index, character in enumerate(sorted(set(characters)))}
    # Without an unknown token in the vocabulary, an unseen character is an error and never another character.
    backend = tokenizers.Tokenizer(models.WordLevel(vocab=vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(CHARACTER_PATTERN), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return backend


def _gpt2() -> tokenizers.Tokenizer:
    """GPT-2's released merges, which tiktoken downloads and keeps, as tokenizer.json has them."""
    from tiktoken.load import read_file_cached

    try:
        lines = read_file_cached(GPT2_MERGES, GPT2_MERGES_SHA256).decode("utf-8").splitlines()
    except (OSError, ValueError) as error:  # no network, or a broken download
        raise UserError(
            f"tokenizer=gpt2: its vocabulary could not be downloaded ({error}). Set TIKTOKEN_CACHE_DIR to a folder "
            "that holds it, or train your own with tokenizer=bpe"
        ) from None
    pairs = (line.split(" ") for line in lines[1:] if line)  # after a line with the version
    return byte_level(
        [(left, right) for left, right in pairs], pre_tokenizers.ByteLevel(add_prefix_space=False), BYTE_OF
    )
