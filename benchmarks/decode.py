"""Tokens a second, time to the first token and peak memory of GPT-2 124M, next to transformers and CTranslate2.

    pip install -e '.[bench]'
    python -m benchmarks.decode --repeats 3 --output decode.json
    python -m benchmarks.decode --model runs/mine/checkpoints/best --text held-out.txt --temperature 1

The model has GPT-2 124M's shape and random weights, and is made once in a temporary folder, for CTranslate2 converted
by its own converter; nothing is downloaded. Every contender continues the same random prompts, greedily where no
temperature is given, with a cache, and the end of text ends nothing, so that all make the same number of tokens. Tokens
a second count the whole call, prompt included; the time to the first token is that of a call for one. Each figure comes
from a fresh process, after a short call to warm it up.

How fast a draft makes a model (fp32+int8: guesses in int8, checked in fp32) depends on how often it is right, so these
contenders take part only where a trained model is given, GPT-2 in transformers' format with its tokenizer, and a text
with prompts for it; nothing else depends on the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.side_by_side import (
    Results,
    in_turn,
    last_object,
    median,
    peak_bytes,
    print_table,
    spread,
    worker,
    write_json,
)

VOCAB, CONTEXT = 50257, 1024
Prompts = list[list[int]]
Generate = Callable[[Prompts, int], list[list[int]]]  # prompts, new tokens of each → the new tokens
CONTENDERS = (
    "transformers fp32", "transformers bf16",
    "CTranslate2 fp32", "CTranslate2 int8",
    "Newleaf fp32", "Newleaf bf16", "Newleaf int8", "Newleaf int4",
)  # fmt: skip
DRAFTED = ("Newleaf fp32+int8", "Newleaf fp32+int4")
CTRANSLATE2_TYPES = {"fp32": "float32", "int8": "int8"}
FIRST_TOKENS = 5  # calls whose median is the time to the first token


def convert(model: Path, folder: Path, contenders: Sequence[str]) -> None:
    """What CTranslate2 makes of a model in transformers' format, for those contenders that are its."""
    from ctranslate2.converters import TransformersConverter

    for precision, name in CTRANSLATE2_TYPES.items():
        if f"CTranslate2 {precision}" in contenders:
            TransformersConverter(str(model)).convert(str(folder / precision), quantization=name)


def make_model(folder: Path) -> None:
    """A random GPT-2 124M in transformers' format, with a tokenizer that has a word t0, t1, … for each id."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"t{number}": number for number in range(VOCAB)}, unk_token="t0"))
    last = f"t{VOCAB - 1}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token=last, eos_token=last, unk_token="t0")
    tokenizer.save_pretrained(folder)


def load_transformers(model: Path, folder: Path, precision: str, temperature: float) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    peer = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    peer.generation_config.eos_token_id = None
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}

    @torch.inference_mode()
    def generate(prompts: Prompts, n_new: int) -> list[list[int]]:
        tokens = torch.tensor(prompts)
        made = peer.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=n_new, pad_token_id=0, **how
        )
        return made[:, tokens.shape[1] :].tolist()

    return generate


def load_ctranslate2(model: Path, folder: Path, precision: str, temperature: float) -> Generate:
    import ctranslate2

    generator = ctranslate2.Generator(
        str(folder / precision), compute_type=CTRANSLATE2_TYPES[precision], intra_threads=cores()
    )

    vocabulary = json.loads((folder / precision / "vocabulary.json").read_text())
    how = {"sampling_topk": 0, "sampling_temperature": temperature} if temperature else {}

    def generate(prompts: Prompts, n_new: int) -> list[list[int]]:
        words = [[vocabulary[token] for token in prompt] for prompt in prompts]
        made = generator.generate_batch(
            words, min_length=n_new, max_length=n_new, include_prompt_in_result=False, **how
        )
        return [result.sequences_ids[0] for result in made]

    return generate


def load_newleaf(model: Path, folder: Path, precision: str, temperature: float) -> Generate:
    from gpt.inference.decode import decode
    from gpt.inference.draft import Draft
    from gpt.inference.quantize import lay_out, rounded_copy
    from gpt.inference.rows import Row
    from gpt.inference.sampling import Sampling, random_stream
    from gpt.model.adapters import open_model
    from gpt.model.hardware import decoding_hardware

    precision, _, guesses = precision.partition("+")
    quantize = precision if precision.startswith("int") else "none"
    decoder = open_model(model).eval()
    hardware = decoding_hardware("cpu", "auto" if quantize != "none" else precision, decoder.config.n_embd)
    decoder.to(hardware.dtype)
    draft = Draft(rounded_copy(decoder, hardware, guesses)) if guesses else None
    lay_out(decoder, hardware, quantize)

    def generate(prompts: Prompts, n_new: int) -> list[list[int]]:
        rows = [Row(list(prompt), random_stream(0, number, prompt)) for number, prompt in enumerate(prompts)]
        for _ in decode(decoder, rows, Sampling(temperature), n_new, end_of_text=-1, vocab_size=VOCAB, draft=draft):
            pass
        return [row.tokens[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]

    return generate


LOADERS = {"transformers": load_transformers, "CTranslate2": load_ctranslate2, "Newleaf": load_newleaf}


def measure(
    contender: str, model: Path, folder: Path, prompts: Prompts, n_new: int, temperature: float
) -> dict[str, float]:
    """One repetition, in a process of its own."""
    library, precision = contender.split()
    generate = LOADERS[library](model, folder, precision, temperature)
    generate(prompts, 4)
    first = statistics.median(timed(generate, prompts, 1) for _ in range(FIRST_TOKENS))
    seconds = timed(generate, prompts, n_new)
    return {
        "tokens_per_second": len(prompts) * n_new / seconds,
        "first_token_ms": first * 1000,
        "peak_mib": peak_bytes() / 2**20,
    }


def make_prompts(model: Path, text: Path | None, sequences: int, n_prompt: int) -> Prompts:
    """Random ids, or pieces of a text from random places."""
    numbers = random.Random(sequences)
    if text is None:
        return [[numbers.randrange(VOCAB - 1) for _ in range(n_prompt)] for _ in range(sequences)]
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text.read_text(encoding="utf-8")).ids
    if len(ids) < n_prompt:
        sys.exit(f"{text} has {len(ids)} tokens, fewer than a prompt of {n_prompt}")
    starts = [numbers.randrange(len(ids) - n_prompt + 1) for _ in range(sequences)]
    return [ids[start : start + n_prompt] for start in starts]


def write_prompts(arguments: argparse.Namespace) -> None:
    for sequences in arguments.sequences:
        prompts = make_prompts(arguments.model, arguments.text, sequences, arguments.prompt_tokens)
        (arguments.folder / f"prompts-{sequences}.json").write_text(json.dumps(prompts))


def timed(generate: Generate, prompts: Prompts, n_new: int) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    made = generate(prompts, n_new)
    seconds = time.perf_counter() - started
    if [len(tokens) for tokens in made] != [n_new] * len(prompts):
        sys.exit(f"asked for {n_new} tokens of {len(prompts)} prompts, got {[len(tokens) for tokens in made]}")
    return seconds


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", choices=("make", "prepare", *CONTENDERS, *DRAFTED), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help="GPT-2 in transformers' format, instead of random weights")
    parser.add_argument("--text", type=Path, help="text file with prompts for --model")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedily")
    parser.add_argument("--contenders", nargs="+", choices=(*CONTENDERS, *DRAFTED))
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8], help="decoded at once")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    arguments = parser.parse_args()
    n_prompt, n_new = arguments.prompt_tokens, arguments.new_tokens
    if n_prompt < 1 or n_new < 1 or n_prompt + n_new > CONTEXT:
        parser.error(f"a prompt and its continuation are 2 to {CONTEXT} tokens, the context")
    arguments.contenders = arguments.contenders or (*CONTENDERS, *(DRAFTED if arguments.model else ()))
    if not arguments.model and set(arguments.contenders) & set(DRAFTED):
        parser.error("how often a draft is right is a question for a trained model; give --model and --text")
    if arguments.worker is None and bool(arguments.model) != bool(arguments.text):
        parser.error("--model and --text go together")
    return arguments


def work(arguments: argparse.Namespace) -> dict[str, float]:
    """What a process that `run_all` starts does: make a model, prepare what contenders need of it, or measure one."""
    if arguments.worker == "make":
        make_model(arguments.folder)
        return {}
    if arguments.worker == "prepare":
        convert(arguments.model, arguments.folder, arguments.contenders)
        write_prompts(arguments)
        return {}
    prompts = json.loads((arguments.folder / f"prompts-{arguments.sequences[0]}.json").read_text())
    model, folder = arguments.model, arguments.folder
    return measure(arguments.worker, model, folder, prompts, arguments.new_tokens, arguments.temperature)


def run_all(arguments: argparse.Namespace, folder: Path) -> Results:
    """Every contender in turn, in processes of their own, as peak memory is inherited."""
    model = arguments.model or folder
    shared: list[object] = ["--model", model, "--folder", folder, "--prompt-tokens", arguments.prompt_tokens]
    if not arguments.model:
        last_object(worker("decode", "make", "--folder", folder))
    texts = ("--text", arguments.text) if arguments.text else ()
    which = ("--sequences", *arguments.sequences, "--contenders", *arguments.contenders)
    last_object(worker("decode", "prepare", *shared, *texts, *which))
    how = ("--new-tokens", arguments.new_tokens, "--temperature", arguments.temperature)
    runs = {
        f"{name}, {sequences}": worker("decode", name, *shared, "--sequences", sequences, *how)
        for sequences in arguments.sequences
        for name in arguments.contenders
    }
    return in_turn(runs, arguments.repeats)


def table(arguments: argparse.Namespace, results: Results) -> tuple[list[str], list[list[str]]]:
    """Its header and its rows, one for each contender."""
    header = [""]
    for n in arguments.sequences:
        header += [f"{n} sequence{'s' * (n > 1)}: tokens/s", "first token, ms", "peak MiB"]
    rows = []
    for name in arguments.contenders:
        rows.append([name])
        for run in (f"{name}, {sequences}" for sequences in arguments.sequences):
            cells = spread(results, run, "tokens_per_second"), spread(results, run, "first_token_ms")
            rows[-1] += [*cells, f"{median(results, run, 'peak_mib'):,.0f}"]
    return header, rows


def main() -> None:
    arguments = parse()
    if arguments.worker:
        print(json.dumps(work(arguments)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        results = run_all(arguments, Path(temporary))
    print_table(*table(arguments, results))
    how = {name: getattr(arguments, name) for name in ("prompt_tokens", "new_tokens", "temperature")}
    write_json(arguments.output, results, **how)


if __name__ == "__main__":
    main()
