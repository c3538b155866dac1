"""How near generated texts come to their references: exact match, BLEU, chrF, ROUGE and METEOR.

Every figure is that of its field's usual library (sacrebleu, rouge_score, nltk); what is decided here is only how text
becomes words, since those libraries' defaults are made for English. ROUGE and METEOR count the words of `words`, BLEU
those of the sacrebleu tokenizer that `bleu_tokenizer` chooses, and chrF needs no words.

Sources: BLEU: Papineni et al. 2002, with Post 2018 (sacrebleu); chrF: Popović 2015; ROUGE: Lin 2004; METEOR: Banerjee
and Lavie 2005.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

KANA = r"\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001b000-\U0001b16f"
HAN = r"\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
IS_KANA, IS_CJK = re.compile(f"[{KANA}]"), re.compile(f"[{KANA}{HAN}]")
JAPANESE_SHARE = 0.1  # of kana among CJK characters: Chinese borrows a の now and then, Japanese is half kana

NO_WORDNET = "WordNet is not installed: exact and stem matches only; python -m nltk.downloader wordnet"


@dataclass(frozen=True)
class Scores:
    """Of `pairs` predictions against one reference each. BLEU and chrF are from 0 to 100, the others from 0 to 1."""

    pairs: int
    exact_match: float  # share of predictions that equal their reference, blanks around them aside
    bleu: float  # of the whole corpus; 0 where no text has four tokens
    chrf: float  # of the whole corpus
    rouge1: float  # ROUGE and METEOR: mean over pairs; of ROUGE, the F1
    rouge2: float
    rougeL: float
    meteor: float
    bleu_signature: str  # sacrebleu's: two figures compare where their signatures are equal
    chrf_signature: str
    meteor_note: str | None  # what METEOR had to do without


def score(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """Score predictions against references in the same order. Raises ValueError for none, or for unequal numbers."""
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} references: need as many, at least one")
    equal = [said.strip() == meant.strip() for said, meant in zip(predictions, references, strict=True)]
    bleu, bleu_signature = bleu_score(predictions, references)
    chrf, chrf_signature = chrf_score(predictions, references)
    meteor, meteor_note = meteor_score(predictions, references)
    return Scores(
        pairs=len(predictions),
        exact_match=fmean(equal),
        bleu=bleu,
        chrf=chrf,
        **rouge_scores(predictions, references),
        meteor=meteor,
        bleu_signature=bleu_signature,
        chrf_signature=chrf_signature,
        meteor_note=meteor_note,
    )


def words(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters, marks and digits; each Chinese character or kana is one.

    Of ASCII these are the words of rouge_score's own tokenizer, which loses every other letter.
    """
    return "".join(map(spaced, text.lower())).split()


@cache
def spaced(character: str) -> str:
    """The character as part of a word, as a word of its own between blanks, or as a blank."""
    if IS_CJK.match(character):
        return f" {character} "
    return character if unicodedata.category(character)[0] in "LMN" else " "


def bleu_tokenizer(references: Sequence[str]) -> str:
    """The sacrebleu tokenizer for the references' language.

    `zh`, with which Chinese is published, where at least half of their characters, blanks aside, are Chinese or kana:
    each Chinese character is a token, and Latin words stay whole. It leaves a run of kana as one token, though, so it
    is `char` where a tenth of these characters are kana. Else sacrebleu's default, `13a`.
    """
    text = "".join("".join(references).split())
    n_cjk, n_kana = len(IS_CJK.findall(text)), len(IS_KANA.findall(text))
    if not n_cjk or 2 * n_cjk < len(text):
        return "13a"
    return "char" if n_kana >= JAPANESE_SHARE * n_cjk else "zh"


def bleu_score(predictions: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """BLEU of the corpus, 0 to 100, and its signature."""
    from sacrebleu.metrics import BLEU  # these libraries take a second to import

    metric = BLEU(tokenize=bleu_tokenizer(references))
    found = metric.corpus_score(list(predictions), [list(references)])
    return found.score, str(metric.get_signature())


def chrf_score(predictions: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """chrF2 of the corpus, 0 to 100, and its signature."""
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    found = metric.corpus_score(list(predictions), [list(references)])
    return found.score, str(metric.get_signature())


class Words:
    """`words` in the form that rouge_score takes."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def rouge_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L, each the mean F1 over the pairs, 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(kinds, tokenizer=Words())
    found = [scorer.score(meant, said) for said, meant in zip(predictions, references, strict=True)]
    return {kind: fmean(one[kind].fmeasure for one in found) for kind in kinds}


class NoSynonyms:
    """A WordNet that knows no word."""

    def synsets(self, word: str) -> tuple[()]:
        return ()


def meteor_score(predictions: Sequence[str], references: Sequence[str]) -> tuple[float, str | None]:
    """METEOR, the mean over the pairs, 0 to 1, and a note where it had to do without synonyms."""
    from nltk.corpus import wordnet
    from nltk.translate.meteor_score import single_meteor_score

    synonyms, note = wordnet, None
    try:
        wordnet.ensure_loaded()
    except LookupError:  # nothing is downloaded behind the user's back
        synonyms, note = NoSynonyms(), NO_WORDNET
    pairs = zip(predictions, references, strict=True)
    return fmean(single_meteor_score(words(meant), words(said), wordnet=synonyms) for said, meant in pairs), note
