"""What `sample.py` does: prompts from the command line, a file or the terminal; text to the terminal or a file.

Text that was asked for goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from gpt.config import SampleConfig
from gpt.config.sampling import DEFAULT_TEMPERATURE
from gpt.inference.beam import beam_search
from gpt.inference.decode import Sample, generate
from gpt.inference.draft import Draft
from gpt.inference.quantize import lay_out, possible_draft, rounded_copy
from gpt.inference.sampling import Sampling
from gpt.model.available import has_room
from gpt.model.hardware import Hardware, decoding_hardware
from gpt.model.opening import open_checkpoint
from gpt.model.transformer import Decoder
from gpt.options import UserError, say
from gpt.text.encoders import check_unicode
from gpt.text.files import check_writable_folder, write_whole
from gpt.text.spans import Span, decode

# Where `draft=auto` guesses: it takes some 50 tokens until guesses win back the time of rounding the weights, more
# sequences fill a pass by themselves, and smaller models are quick anyway. `benchmarks/README.md` has the figures.
DRAFTED_TOKENS, DRAFTED_SEQUENCES, DRAFTED_PARAMETERS = 100, 4, 25_000_000


class Sampler:
    """A model, its tokenizer, and how it samples. `sequences`: how many are to be written."""

    def __init__(self, config: SampleConfig, sequences: int) -> None:
        self.config = config
        folder, self.model, self.tokenizer = open_checkpoint(config.checkpoint)
        hardware = decoding_hardware(config.device, config.precision, self.model.config.n_embd)
        count = self.model.parameter_count()
        self.model.to(hardware.device, hardware.dtype).eval()
        kind = draft_kind(config, self.model, hardware, sequences)
        self.draft = None if kind == "none" else Draft(rounded_copy(self.model, hardware, kind))
        layout = lay_out(self.model, hardware, config.quantize)
        layout += "" if self.draft is None else f", guesses by weights in {kind}"
        temperature = DEFAULT_TEMPERATURE if config.temperature is None else config.temperature
        self.sampling = Sampling(temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty)
        place = hardware.describe(self.model.config.head_width, cached=True)
        say(f"{folder}: {count:,} parameters, {place}, {layout}")

    def steps(self, jobs: list[tuple[str, int]]) -> Iterator[list[Sample]]:
        """Decode (prompt, sample number) pairs as one batch, yielding after each step."""
        return generate(
            self.model,
            self.tokenizer,
            jobs,
            self.sampling,
            max_new_tokens=self.config.max_new_tokens,
            stop=self.config.stop,
            seed=self.config.seed,
            draft=self.draft,
        )

    def search(self, prompts: list[str]) -> list[list[Sample]]:
        """The `num_samples` best continuations of each prompt that beam search finds, prompts decoded together."""
        return beam_search(
            self.model,
            self.tokenizer,
            prompts,
            num_beams=self.config.num_beams,
            num_return=self.config.num_samples,
            max_new_tokens=self.config.max_new_tokens,
            length_penalty=self.config.length_penalty,
            repetition_penalty=self.config.repetition_penalty,
            stop=self.config.stop,
        )

    def samples(self, prompts: list[str]) -> Iterator[Sample]:
        """All samples of all prompts, in order, `batch_size` sequences at a time."""
        if self.config.num_beams > 1:
            waiting = iter(prompts)
            while group := list(islice(waiting, self.config.batch_size // self.config.num_beams)):
                yield from chain.from_iterable(self.search(group))
            return
        jobs = ((prompt, number) for prompt in prompts for number in range(self.config.num_samples))
        while batch := list(islice(jobs, self.config.batch_size)):
            *_, done = self.steps(batch)
            yield from done

    def stream(self, prompt: str, number: int = 0) -> None:
        """Print a prompt and its continuation: while it is made, or with beams once it is found."""
        put(prompt)
        if self.config.num_beams > 1:
            put(self.search([prompt])[0][0].text)
        else:
            for (sample,) in self.steps([(prompt, number)]):
                put(sample.piece)
        put("\n")


def draft_kind(config: SampleConfig, model: Decoder, hardware: Hardware, sequences: int) -> str:
    """The kind of draft for so many sequences: int8, int4 or none; as if no text ended early."""
    if config.draft != "auto":
        return config.draft
    batches = math.ceil(sequences / config.batch_size)
    pays = (
        (config.interactive or batches * config.max_new_tokens >= DRAFTED_TOKENS)
        and min(sequences, config.batch_size) <= DRAFTED_SEQUENCES
        and model.parameter_count() >= DRAFTED_PARAMETERS
    )
    fits = hardware.precision == "fp32" and config.quantize == "none" and config.num_beams == 1
    weights = 4 * model.parameter_count()  # bytes in fp32, more than packing and rounding add
    return possible_draft(model, hardware) if pays and fits and has_room(hardware.device, weights) else "none"


def sample(config: SampleConfig) -> int:
    """Run `sample.py`. Returns the exit status. Raises UserError."""
    prompts = read_prompts(config)
    output = output_file(config.output) if config.output else None
    sampler = Sampler(config, len(prompts) * config.num_samples)
    for prompt in prompts:
        sampler.tokenizer.encode(prompt)  # refuse what cannot be encoded before anything is written
    if config.interactive:
        converse(sampler)
    elif output:
        write_samples(sampler, prompts, output)
    elif config.stream and len(prompts) == config.num_samples == 1:
        sampler.stream(prompts[0])
    else:
        for number, made in enumerate(sampler.samples(prompts)):
            if number:
                put("---\n")
            put(f"{made.prompt}{made.text}\n")
    return 0


def read_prompts(config: SampleConfig) -> list[str]:
    """The prompts asked for: `prompt`, or the lines of `prompt_file`, which may be JSON objects with a `prompt`."""
    if not config.prompt_file:
        if "\\n" in config.prompt:  # as templates have it
            say(r"prompt: the \n in it are a backslash and an n; the shell writes a line end as prompt=$'…\n'")
        return [config.prompt]
    path = Path(os.path.expanduser(config.prompt_file))
    try:
        text = "".join(decode(Span(path)))
    except UserError as error:
        raise UserError(f"prompt_file={error}") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    prompts = [read_prompt(line, f"prompt_file={path}, line {n}", path) for n, line in enumerate(lines, 1) if line]
    if not prompts:
        raise UserError(f"prompt_file={path} holds no prompt; write one on each line")
    return prompts


def read_prompt(line: str, where: str, path: Path) -> str:
    if path.suffix not in (".jsonl", ".ndjson"):
        return line
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where}: not JSON ({error}); write {{"prompt": "…"}} on each line') from None
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise UserError(f'{where}: needs an object with a text under "prompt", as {{"prompt": "…"}}')
    try:
        check_unicode([record["prompt"]])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return record["prompt"]


def output_file(name: str) -> Path:
    """Where samples go; a link to a file stays, and leads to the new text. Raises UserError where that cannot be."""
    path = Path(os.path.expanduser(name))
    if name.endswith("/"):
        raise UserError(f"output={name} is the name of a folder; name a file in it, as {name}samples.jsonl")
    try:
        if is_replaced(path):
            path = path.resolve()
            check_writable_folder(path.parent, f"{path.name}.partial")
        if path.is_file() or path.is_dir():  # a pipe or a device is opened once
            path.open("a", encoding="utf-8").close()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"output={name} cannot be written ({reason}); choose another file") from None
    return path


def is_replaced(path: Path) -> bool:
    """Whether samples take the place of what is there, rather than being written to it, as to a device or pipe."""
    return path.is_file() or not path.exists()


def write_samples(sampler: Sampler, prompts: list[str], path: Path) -> None:
    """One JSON object a sample. A file changes only once all are made."""
    lines = map(sample_line, sampler.samples(prompts))
    if is_replaced(path):
        write_whole(path, lines)
    else:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(lines)
    say(f"samples made: {len(prompts) * sampler.config.num_samples}, in {path}")


def sample_line(made: Sample) -> str:
    record = {"prompt": made.prompt, "sample": made.number, "text": made.text}
    record |= {"ended": made.ended, "tokens": made.n_tokens}
    record |= {} if made.score is None else {"score": made.score}
    return json.dumps(record, ensure_ascii=False) + "\n"


def converse(sampler: Sampler) -> None:
    """Continue each line that is typed, until the end of input. Ctrl-C ends a continuation, not the program."""
    if sys.stdin is None:
        raise UserError("interactive=true: standard input is closed; give prompt=… or prompt_file=… instead")
    say("Type a prompt and press Enter; Ctrl-C stops the text, Ctrl-D leaves.")
    number = 0
    while True:
        try:
            prompt = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise UserError(f"interactive=true: standard input is not valid {error.encoding.upper()}") from None
        except KeyboardInterrupt:
            put("\n")
            return
        try:
            sampler.stream(prompt, number)
        except UserError as error:
            say(str(error))
        except KeyboardInterrupt:
            put("\n")
        number += 1


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text with U+FFFD for control characters, which would move the cursor of a terminal, or worse."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def put(text: str) -> None:
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
