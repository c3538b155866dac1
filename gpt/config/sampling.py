"""Options of `sample.py`."""

from __future__ import annotations

from dataclasses import dataclass

from gpt.config.device import (
    CHECKPOINT,
    QUANTIZE,
    QUANTIZED,
    checkpoint_mistakes,
    device_mistakes,
    quantize_mistakes,
)
from gpt.options import Mistake, Options, option

DEFAULT_TEMPERATURE = 0.8
DEFAULT_NEW_TOKENS = 200
DEFAULT_BATCH_SIZE = 32  # sequences decoded at once


@dataclass(frozen=True)
class SampleConfig(Options):
    """Everything `sample.py` takes."""

    checkpoint: str = option("", CHECKPOINT, free_text=True)
    prompt: str = option("", "text to continue, verbatim; empty: the start of a document", free_text=True)
    prompt_file: str | None = option(
        None, "file with one prompt on each line, or JSONL with a `prompt` field", free_text=True
    )
    output: str | None = option(None, "JSONL file for prompts and samples, instead of standard output", free_text=True)
    max_new_tokens: int = option(DEFAULT_NEW_TOKENS, "longest continuation", unit="tokens", low=1)
    num_samples: int = option(1, "continuations of each prompt", low=1)
    temperature: float | None = option(
        None, f"divides the logits; 0: always the likeliest token; null: {DEFAULT_TEMPERATURE}", low=0
    )
    top_k: int | None = option(None, "sample only from the k likeliest tokens", low=1)
    top_p: float | None = option(None, "sample from the smallest set with this probability", above=0, high=1)
    min_p: float | None = option(
        None, "sample from tokens with this share of the likeliest's probability", low=0, high=1
    )
    repetition_penalty: float = option(
        1.0, "above 1: make tokens already in the text less likely (CTRL)", low=0.01, high=100
    )
    num_beams: int = option(1, "above 1: beam search, which returns the num_samples best of so many beams", low=1)
    length_penalty: float = option(
        1.0, "beams are compared by log-probability / tokens ** this; more favours longer text", low=-10, high=10
    )
    stop: tuple[str, ...] = option(
        (), "end before this text; repeat the option for several", free_text=True, escapes=True
    )
    seed: int = option(
        1337,
        "sample i of a prompt and seed is the same alone and batched; no influence on beams",
        low=0,
        below=2**63,
    )
    batch_size: int = option(
        DEFAULT_BATCH_SIZE, "sequences decoded at once, each beam being one", unit="sequences", low=1
    )
    stream: bool = option(True, "print text while it is made (one sample of one prompt, no beams)")
    interactive: bool = option(False, "read prompts from the terminal, one a line")
    device: str = option("auto", "auto: cuda, else mps, else cpu; also cuda:1")
    precision: str = option("auto", "weights and arithmetic: auto, fp32 or bf16", choices=("auto", "fp32", "bf16"))
    quantize: str = option("none", QUANTIZE, choices=QUANTIZED)
    draft: str = option(
        "auto",
        "int8 or int4: guess tokens with weights so rounded and keep those that the full weights choose too: the same "
        "text (but for fp32's last bits), sooner; on the processor, in fp32; none: never; auto: where a few sequences "
        "of a large model gain by it and the memory has room",
        choices=("auto", *QUANTIZED),
    )

    def mistakes(self) -> list[Mistake]:
        found = checkpoint_mistakes(self.checkpoint) + device_mistakes(self.device)
        found += quantize_mistakes(self.quantize, self.precision)
        found += self.draft_mistakes()
        if self.interactive:
            for name in ("prompt", "prompt_file", "output"):
                if getattr(self, name):
                    found.append(Mistake(name, "does not go with interactive=true"))
            if self.num_samples > 1:
                found.append(Mistake("num_samples", "does not go with interactive=true"))
        elif self.prompt and self.prompt_file:
            found.append(Mistake("prompt_file", "give prompt or prompt_file, not both"))
        if self.temperature and self.temperature < 0.001:  # logits divided by less leave the range of their type
            found.append(
                Mistake("temperature", "is too small; use 0, which always takes the likeliest token, or 0.001")
            )
        return found + self.beam_mistakes() + decoding_mistakes(self.num_beams, self.batch_size, self.stop)

    def draft_mistakes(self) -> list[Mistake]:
        if self.draft not in ("int8", "int4"):
            return []
        found = []
        if self.quantize != "none":
            found.append(Mistake("draft", f"guesses for weights in full; leave out quantize={self.quantize}, or draft"))
        if self.precision not in ("auto", "fp32"):
            found.append(Mistake("draft", f"guesses for fp32; leave out precision={self.precision}, or draft"))
        if self.num_beams > 1:
            found.append(Mistake("draft", "beam search weighs many texts at once; leave it out, or num_beams"))
        return found

    def beam_mistakes(self) -> list[Mistake]:
        if self.num_beams == 1:
            if self.length_penalty != 1:
                return [Mistake("length_penalty", "compares beams; ask for some, as num_beams=4, or leave it out")]
            return []
        found = [
            Mistake(name, "beam search is deterministic and does not sample; leave it out, or num_beams")
            for name in ("temperature", "top_k", "top_p", "min_p")
            if getattr(self, name) is not None
        ]
        if self.num_samples > self.num_beams:
            found.append(Mistake("num_samples", f"is more than num_beams={self.num_beams}; raise num_beams"))
        return found


def decoding_mistakes(num_beams: int, batch_size: int | None, stop: tuple[str, ...]) -> list[Mistake]:
    """What every command that decodes refuses; `batch_size` None fits any beams."""
    found = []
    if batch_size is not None and num_beams > batch_size:
        message = f"a prompt's beams are decoded at once, and batch_size={batch_size} is less; raise it"
        found.append(Mistake("num_beams", message))
    if any(not text for text in stop):
        found.append(Mistake("stop", "an empty text would stop at once; leave out the option"))
    return found
