"""Fast encoders: texts → ids for the tokenizers whose result something faster than `tokenizers` can prove to match.

`fast_encoder` looks at a tokenizer.json and returns one of

- `encode_bytes`: bytes are their own ids; `numpy` views the UTF-8;
- `CharacterEncoder`: a table over code points;
- `TiktokenEncoder`: OpenAI's tiktoken (https://github.com/openai/tiktoken), which merges by the rank of the merged
  token where `tokenizers` merges by the rank of the pair.

When tiktoken gives the same ids. (1) The ids of merged tokens grow strictly in the order of the merges. (2) Text is cut
into words by a regular expression that both engines are known to read alike (tests compare their character classes on
the whole of Unicode). (3) Every token t is reachable: merging t's own bytes gives t back. Say that an adjacent pair x|y
spans exactly token t. No merge has crossed t's borders, so the merges inside the span are those of t alone, whose last
one is t's own pair in the list of merges: (x, y) is that pair, and both programs merge it at the same rank.

Why the expression that tiktoken gets has no look-ahead. With one, its engine backtracks and is less than half as fast;
without, it is a finite automaton. `\\s+(?!\\S)|\\s+` takes a run of white space but for its last character where
something else follows, so a word always begins at the last of two or more blanks (in our own expression unless that is
a line end, which `\\s*[\\r\\n]+` takes first). The text is cut there beforehand; what is left to `\\s+` is a whole run
at the end of a part, or a single blank, and of both it takes all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tokenizers

from gpt.options import UserError

# texts → ids [n_tokens] of all, one after another (int32, uint32 or uint8), and the number of each one's [n_texts]
Encoder = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]

# Contractions; one leading non-letter and letters; up to three digits; punctuation and line ends; line ends; spaces.
# Llama 3's and GPT-4's expression, with the case of contractions spelled out, as engines fold case differently.
NEWLEAF_PATTERN = (
    r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# GPT-2's expression and ours without look-ahead.
_PLAIN = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+",
    "newleaf": NEWLEAF_PATTERN.removesuffix(r"|\s+(?!\S)|\s+") + r"|\s+",
}
# Blanks within a line, and the line ends: together what both engines mean by \s (Python's \s has four more).
_WIDE_SPACE = r"\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_SPACE, _LINE_ENDS = r"\t\x0b\x0c " + _WIDE_SPACE, r"\r\n"
_WIDE = re.compile(f"[{_WIDE_SPACE}]")
_CUT, _END = "\0", "\1"  # marks in joined texts: of a cut before a last blank, and of a text's end


STRETCH = 1 << 17  # characters that tiktoken gets at once, about
_SAFE = re.compile(r"(?<=\S) ")


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTE_OF = byte_alphabet()
BYTE_OF_POINT = {ord(character): byte for character, byte in BYTE_OF.items()}  # for str.translate
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


def utf8(text: str) -> bytes:
    """The UTF-8 of `text`. Raises UserError where it holds a lone surrogate, which is no character."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text is not valid Unicode: {text[error.start]!r} at character {error.start} is half of a surrogate "
            "pair; leave it out"
        ) from None


@contextmanager
def refusing(message: str) -> Iterator[None]:
    """Raises UserError where the tokenizers library cannot use a file or a text: it raises plain Exception, or its own
    code panics, which is no Exception."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{message} ({error})") from None


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate."""
    try:
        utf8(text)
    except UserError:
        return False
    return True


def check_unicode(texts: Iterable[str]) -> None:
    """Raises UserError where a text holds a lone surrogate."""
    for text in texts:
        if not text.isascii():
            utf8(text)


def word_pattern(spec: dict[str, Any]) -> str | None:
    """`gpt2` or `newleaf` where a tokenizer.json cuts text into words by that expression, else None."""
    pre = spec.get("pre_tokenizer") or {}
    if pre.get("type") == "ByteLevel":
        return "gpt2" if pre.get("use_regex", True) and not pre.get("add_prefix_space") else None
    steps = pre.get("pretokenizers", [])
    if pre.get("type") != "Sequence" or [step.get("type") for step in steps] != ["Split", "ByteLevel"]:
        return None
    split, bytes_step = steps
    plain = not split.get("invert") and split.get("behavior") == "Isolated"
    plain_bytes = not bytes_step.get("use_regex", True) and not bytes_step.get("add_prefix_space")
    return "newleaf" if plain and plain_bytes and split.get("pattern") == {"Regex": NEWLEAF_PATTERN} else None


def fast_encoder(spec: dict[str, Any], backend: tokenizers.Tokenizer) -> Encoder | None:
    """The fast path of the tokenizer that `spec` (a parsed tokenizer.json) describes, or None where there is none."""
    if spec.get("normalizer") or not all(token["special"] for token in spec.get("added_tokens", [])):
        return None
    model = spec["model"]
    special = {token["content"] for token in spec.get("added_tokens", [])}
    if model["type"] == "WordLevel":
        vocab = {token: index for token, index in model["vocab"].items() if token not in special}
        by_character = spec.get("pre_tokenizer") == CHARACTER_SPLIT and all(len(token) == 1 for token in vocab)
        return CharacterEncoder(vocab) if by_character and vocab else None
    if model["type"] != "BPE":
        return None
    plain = not any(
        model.get(key)
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    )
    vocab = {token: index for token, index in model["vocab"].items() if token not in special}
    if not plain or not all(character in vocab for character in BYTE_OF):
        return None
    if is_bytes(spec):
        return encode_bytes
    pattern = word_pattern(spec)
    if pattern is None or not _merges_follow_ids(model["merges"], vocab) or not _all_reachable(vocab, backend):
        return None
    return TiktokenEncoder(vocab, pattern, backend)


def is_bytes(spec: dict[str, Any]) -> bool:
    """Whether a tokenizer.json has just the 256 bytes, each its own id, besides special tokens."""
    model = spec["model"]
    pre = spec.get("pre_tokenizer") or {}
    if model["type"] != "BPE" or model["merges"] or pre.get("type") != "ByteLevel" or pre.get("add_prefix_space"):
        return False
    return all(model["vocab"].get(character) == byte for character, byte in BYTE_OF.items())


def _merges_follow_ids(merges: list[Any], vocab: dict[str, int]) -> bool:
    """Conditions 1 and half of 3: ids grow in merge order, and every token but the bytes is merged from two."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    ids = [vocab.get("".join(pair), -1) for pair in pairs]
    growing = all(left < right for left, right in zip([-1, *ids], ids, strict=False))
    return growing and len(ids) + 256 == len(vocab)


def _all_reachable(vocab: dict[str, int], backend: tokenizers.Tokenizer) -> bool:
    model = backend.model
    return all([part.id for part in model.tokenize(token)] == [index] for token, index in vocab.items())


def encode_bytes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 bytes as ids."""
    parts = [utf8(text) for text in texts]
    return np.frombuffer(b"".join(parts), dtype=np.uint8), lengths_of(parts)


def lengths_of(parts: Iterable[Any]) -> np.ndarray:
    return np.fromiter(map(len, parts), dtype=np.int64)


CHARACTER_PATTERN = r"[\s\S]"
CHARACTER_SPLIT = {"type": "Split", "pattern": {"Regex": CHARACTER_PATTERN}, "behavior": "Isolated", "invert": False}


class CharacterEncoder:
    """One token a character, by a table over code points."""

    def __init__(self, vocab: dict[str, int]):
        self.table = np.full(max(map(ord, vocab)) + 2, -1, dtype=np.int32)  # the last entry: any higher code point
        for character, index in vocab.items():
            self.table[ord(character)] = index

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        check_unicode(texts)
        points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4")
        ids = self.table[np.minimum(points, len(self.table) - 1)]
        if ids.size and ids.min() < 0:
            unseen = sorted({chr(point) for point in np.unique(points[ids < 0])})
            shown = " ".join(f"{c!r} (U+{ord(c):04X})" for c in unseen[:20]) + (" …" if len(unseen) > 20 else "")
            raise UserError(
                f"the character tokenizer has never seen {shown}; leave such characters out, or train with "
                "tokenizer=bpe or tokenizer=byte, which take any text"
            )
        return ids, lengths_of(texts)


def stretches(text: str) -> Iterator[str]:
    """`text` in parts of about `STRETCH` characters, each but the first from a space on that follows something else
    than a blank: no alternative of either expression goes on from there into a space."""
    start = 0
    while match := _SAFE.search(text, start + STRETCH):
        yield text[start : match.start()]
        start = match.start()
    yield text[start:]


class Cutter:
    """Marks where a text is cut for an expression without look-ahead: before a blank that stands between another one
    and something that is none. `line_ends`: whether that blank may be a line end."""

    def __init__(self, line_ends: bool):
        blank = _SPACE + _LINE_ENDS
        self.line_ends = line_ends
        self.places = re.compile(rf"(?<=[{blank}])(?=[{blank if line_ends else _SPACE}][^{blank}{_END}])")

    def __call__(self, text: str) -> str:
        """`text` with `_CUT` at each place."""
        if not text.isascii() and _WIDE.search(text):
            return self.places.sub(_CUT, text)
        # The same for text whose blanks are all ASCII, on its UTF-8: several times as fast where blanks are many.
        data = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
        blank = (data == 0x20) | (data - 0x09 < 5)
        last = blank if self.line_ends else blank & (data != 0x0A) & (data != 0x0D)
        other = ~blank & (data != ord(_END))
        places = np.flatnonzero(blank[:-2] & last[1:-1] & other[2:]) + 1
        return np.insert(data, places, ord(_CUT)).tobytes().decode("utf-8")


_CUTTERS = {"gpt2": Cutter(line_ends=True), "newleaf": Cutter(line_ends=False)}


class TiktokenEncoder:
    """A byte-level BPE through tiktoken; `vocab` maps byte-level token strings to ids.

    All texts go to tiktoken as one, with marks between them that are special tokens to it: one call for many short
    texts, during which other threads run.
    """

    def __init__(self, vocab: dict[str, int], pattern: str, backend: tokenizers.Tokenizer):
        import tiktoken

        ranks = {token.translate(BYTE_OF_POINT).encode("latin-1"): index for token, index in vocab.items()}
        self.cut = max(ranks.values()) + 1
        self.end = self.cut + 1
        self.cut_up = _CUTTERS[pattern]
        self.backend = backend
        marks = {_CUT: self.cut, _END: self.end}
        self.encoding = tiktoken.Encoding(pattern, pat_str=_PLAIN[pattern], mergeable_ranks=ranks, special_tokens=marks)

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        check_unicode(texts)  # tiktoken would replace a lone surrogate
        if any(_CUT in text or _END in text for text in texts):
            return self._encode_with_marks_inside(texts)
        # In stretches, as the heap would fragment where arrays of a megabyte come and go.
        parts = [self._encode(part) for part in stretches(_END.join([*texts, ""]))]
        ids = np.concatenate([np.zeros(0, dtype=np.uint32), *parts])
        is_token = ids != self.end
        ends = np.flatnonzero(~is_token) - np.arange(len(texts))  # counted in tokens
        return ids[is_token], np.diff(ends, prepend=0)

    def _encode(self, text: str) -> np.ndarray:
        """Ids of texts with their marks of an end."""
        ids = self.encoding.encode_to_numpy(self.cut_up(text), allowed_special={_CUT, _END}, disallowed_special=())
        return ids[ids != self.cut]

    def _encode_with_marks_inside(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Texts some of which hold the characters that serve as marks: all through `tokenizers`, which is slow."""
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        parts = [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
        return np.concatenate(parts), lengths_of(parts)
