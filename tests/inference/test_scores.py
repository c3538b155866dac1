"""Every score against its library called on the same texts, and against arithmetic done by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from statistics import fmean

import pytest
import sacrebleu
from nltk.corpus import wordnet
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer

from gpt.inference.scores import NO_WORDNET, bleu_tokenizer, score, words

ENGLISH = {
    "The cat sat on the mat, and then it slept.": "A cat sat on the mat; then it was sleeping.",
    "He went to the market on Tuesday.": "He went to the market on Tuesday.",
    "": "Nothing was said about the 3.5 kg of state-of-the-art rice.",
    "It rains, it pours. The old man's snoring": "It's raining; it's pouring. The old man is snoring.",
}
CHINESE = {
    "床前明月光，疑是地上霜。": "床前看月光，疑是地上霜。",
    "我用 GPT-2 写了一首诗。": "我用 GPT-2 写了两首短诗！",
    "": "举头望明月，低头思故乡。",
    "月滿西樓": " 月滿西樓\n",
}
ROUGES = ("rouge1", "rouge2", "rougeL")


def chinese_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+|[\u4e00-\u9fff]", text.lower())


class ChineseWords:
    def tokenize(self, text: str) -> list[str]:
        return chinese_words(text)


class NoWordNet:
    def synsets(self, word: str) -> list[str]:
        return []


def has_wordnet() -> bool:
    try:
        wordnet.synsets("leaf")
    except LookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("texts", "tokenizer", "rouge", "split"),
    [
        (ENGLISH, "13a", RougeScorer(ROUGES), lambda text: re.findall(r"[a-z0-9]+", text.lower())),
        (CHINESE, "zh", RougeScorer(ROUGES, tokenizer=ChineseWords()), chinese_words),
    ],
    ids=["English", "Chinese"],
)
def test_every_figure_is_its_librarys(texts, tokenizer, rouge, split) -> None:  # type: ignore[no-untyped-def]
    said, meant = list(texts), list(texts.values())
    found = score(said, meant)
    assert found.pairs == 4
    assert found.exact_match == 1 / 4
    bleu, chrf = sacrebleu.BLEU(tokenize=tokenizer), sacrebleu.CHRF()
    assert found.bleu == bleu.corpus_score(said, [meant]).score
    assert found.chrf == chrf.corpus_score(said, [meant]).score
    assert (found.bleu_signature, found.chrf_signature) == (str(bleu.get_signature()), str(chrf.get_signature()))
    for name in ROUGES:
        mean = fmean(rouge.score(target=b, prediction=a)[name].fmeasure for a, b in texts.items())
        assert getattr(found, name) == pytest.approx(mean, abs=1e-12)
        assert 0.2 < mean < 0.9
    synonyms = wordnet if has_wordnet() else NoWordNet()
    meteor = fmean(meteor_score([split(b)], split(a), wordnet=synonyms) for a, b in texts.items())
    assert found.meteor == pytest.approx(meteor, abs=1e-12)
    assert found.meteor_note == (None if has_wordnet() else NO_WORDNET)


def test_english_by_hand() -> None:
    found = score(["The cat sat."], ["the cat ran"])
    assert found.exact_match == 0
    # With their case 1/4, 0/3, 0/2 and 0/1 of the 1- to 4-grams match; the zeros are smoothed to 1/2, 1/4 and 1/8.
    assert found.bleu == pytest.approx(100 * (1 / 4 * (1 / 2) / 3 * (1 / 4) / 2 * 1 / 8) ** (1 / 4))
    assert found.rouge1 == found.rougeL == pytest.approx(2 / 3)
    assert found.rouge2 == pytest.approx(1 / 2)
    assert found.meteor == pytest.approx(2 / 3 * (1 - 0.5 * (1 / 2) ** 3))  # two matches in one chunk
    assert score(["rains fell"], ["rain fell"]).meteor == pytest.approx(1 - 0.5 * (1 / 2) ** 3)  # by the stem


def test_chinese_by_hand() -> None:
    found = score(["月滿西樓"], ["月滿東樓"])
    # Of 1- to 4-grams 3/4, 1/3, 0/2 and 0/1 match; the zeros are smoothed to 1/2 and 1/4 of one match.
    assert found.bleu == pytest.approx(100 * (3 / 4 * 1 / 3 * (1 / 2) / 2 * 1 / 4) ** (1 / 4))
    assert found.chrf == pytest.approx(100 * (3 / 4 + 1 / 3) / 4)
    assert found.rouge1 == found.rougeL == pytest.approx(3 / 4)
    assert found.rouge2 == pytest.approx(1 / 3)
    assert found.meteor == pytest.approx(3 / 4 * (1 - 0.5 * (2 / 3) ** 3))  # three matches in two chunks


def test_one_empty_prediction_and_a_perfect_one() -> None:
    nothing = score([""], ["a leaf falls down"])
    assert [nothing.exact_match, nothing.bleu, nothing.chrf, nothing.rouge1, nothing.rougeL, nothing.meteor] == [0] * 6
    whole = score(["a leaf falls down "], [" a leaf falls down"])
    assert [whole.exact_match, whole.rouge1, whole.rouge2, whole.rougeL] == [1] * 4
    assert [whole.bleu, whole.chrf] == pytest.approx([100, 100])
    assert whole.meteor == pytest.approx(1 - 0.5 * (1 / 4) ** 3)
    both_empty = score([""], [""])
    assert (both_empty.exact_match, both_empty.bleu, both_empty.rouge1, both_empty.meteor) == (1, 0, 0, 0)


@pytest.mark.parametrize(("said", "meant"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_nothing_to_score(said: list[str], meant: list[str]) -> None:
    with pytest.raises(ValueError, match=f"{len(said)} predictions and {len(meant)} references"):
        score(said, meant)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop_here, 3.5 GPT-2!", ["don", "t", "stop", "here", "3", "5", "gpt", "2"]),
        ("Ça, déjà naïf", ["ça", "déjà", "naïf"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("我用GPT写𠮷。", ["我", "用", "gpt", "写", "𠮷"]),
        ("コーヒーを3杯、人々ﾃﾞ", [*"コーヒーを", "3", *"杯人々ﾃﾞ"]),
        ("나무 잎", ["나무", "잎"]),
        (" …\n", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        (["a leaf", "月"], "13a"),
        (["月 a\n", "滿 b"], "zh"),
        (["月 a\n", "滿 bc"], "13a"),
        (["他说の是日文的一个假名"], "zh"),
        (["私は学生です"], "char"),
        (["コーヒー"], "char"),
        (["나무 잎"], "13a"),
        (["", " "], "13a"),
    ],
)
def test_bleu_tokenizer(references: list[str], expected: str) -> None:
    assert bleu_tokenizer(references) == expected


def test_the_libraries_are_loaded_only_to_score() -> None:
    code = "import sys, gpt.inference.scores; print({'nltk', 'sacrebleu', 'rouge_score', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"
