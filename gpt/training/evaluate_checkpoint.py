"""What `evaluate.py` does: the loss of a checkpoint on text, and for pairs the completions that it writes.

One JSON object goes to standard output, everything else to standard error:

    checkpoint data context stride tokens bytes loss perplexity bits_per_byte    for every text; loss in nats a token
    quantize                                                                     where it is not none
    pairs generated scores generations                                           for pairs (gpt/inference/scores.py)

What is not a finite number is null. With `stride` null the loss is a run's val/loss, on the tokens that `max_tokens`
says: a run looks at the first `train.eval_tokens` of its held-out part, here all of it is the default.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from gpt.config import DataConfig, EvaluateConfig, TokenizerConfig
from gpt.config.evaluation import TOKENS_AT_ONCE
from gpt.config.sampling import DEFAULT_BATCH_SIZE
from gpt.inference.beam import beam_search
from gpt.inference.decode import Sample, generate
from gpt.inference.quantize import lay_out
from gpt.inference.sampling import Sampling
from gpt.inference.scores import score
from gpt.model.context import adapt
from gpt.model.hardware import choose_hardware, decoding_hardware
from gpt.model.opening import find_tokenizer, open_folder, read_checkpoint
from gpt.model.transformer import Decoder
from gpt.options import ConfigError, UserError, from_dict, say, to_dict
from gpt.text.files import check_writable_folder, write_whole
from gpt.text.shards import Corpus, prepare
from gpt.text.streams import PairStream
from gpt.text.tokenizers import Tokenizer
from gpt.training.checkpoints import STATE, TRAINER, TrainerState, has_state, read_state, state_of
from gpt.training.evaluation import Evaluation, evaluate

# The options of data that do not change the text: they are this machine's, and not for a checkpoint to choose.
HOW_TO_PREPARE = {"data.prepared_dir", "data.workers"}
# Those that say what of a record or a file is a document; the same kind of data is read as in training.
HOW_TO_READ = ("documents", "template", "prompt", "completion", "column")
REPORT_EVERY = 10  # seconds

Pair = tuple[list[int], list[int]]  # ids of a prompt and of its completion, without end of text


@dataclass(frozen=True)
class Generation:
    """A line of generations.jsonl. `ended` is end_of_text, stop or length, as in `Sample`."""

    prompt: str
    reference: str
    prediction: str
    ended: str


def adopt_data(values: dict[str, Any], given: set[str]) -> None:
    """Complete the options that say what is evaluated: where no source is chosen, the one of the checkpoint's training.

    Its held-out part, where nothing else is said; `data.files=[test.jsonl]` keeps what the run says about prompts,
    templates and the like, also behind a `data=jsonl` that the run has too. `values` are all options, nested, and are
    changed; `given` are the dotted names of those that were set. Raises UserError for a checkpoint that cannot say what
    it was trained on.
    """
    data = {name for name in given if name.partition(".")[0] == "data"}
    if values["part"] == "auto":
        values["part"] = "held_out" if data <= HOW_TO_PREPARE or "data.val_files" in data else "all"
    if "data" not in data and values["checkpoint"]:  # a missing checkpoint is reported with the other mistakes
        own = training_data(values["checkpoint"])
        if "data.files" in data:
            own["val_files"] = []
        names = [name.removeprefix("data.") for name in data]
        values["data"] |= own | {name: values["data"][name] for name in names}
    elif values["checkpoint"] and data.isdisjoint(f"data.{name}" for name in HOW_TO_READ):
        values["data"] |= read_alike(values)
    if values["part"] == "all":
        values["data"]["files"] = [*values["data"]["files"], *values["data"]["val_files"]]
        values["data"]["val_files"] = []


def read_alike(values: dict[str, Any]) -> dict[str, Any]:
    """How the checkpoint's training read the kind of data that is chosen; {} where that was another or is unknown."""
    with suppress(UserError):
        own = training_data(values["checkpoint"])
        if own["name"] == values["data"]["name"]:
            return {name: own[name] for name in HOW_TO_READ if name in own}
    return {}


def training_data(checkpoint: str) -> dict[str, Any]:
    """The `data` options that say what a checkpoint was trained on. Raises UserError where it does not know them."""
    remedy = "say what to evaluate, as data=text data.files='[held-out.txt]'"

    def trained_on(folder: Path) -> tuple[Path, dict[str, Any]]:
        data = read_state(folder).config.get("data") if has_state(folder) else None
        if not data:
            raise UserError(
                f"checkpoint={checkpoint}: {folder} does not say what it was trained on (it has no {TRAINER}/{STATE}); "
                f"{remedy}"
            )
        return folder, data

    folder, data = read_checkpoint(checkpoint, trained_on)
    try:
        from_dict(DataConfig, data)
    except ConfigError as error:
        raise UserError(
            f"checkpoint={checkpoint}: {folder} was trained on data that this version cannot read; {remedy}\n  {error}"
        ) from None
    return {name: value for name, value in data.items() if f"data.{name}" not in HOW_TO_PREPARE}


def evaluate_checkpoint(config: EvaluateConfig) -> int:
    """Run `evaluate.py`. Returns the exit status. Raises UserError."""
    state, (folder, model, tokenizer) = read_checkpoint(
        config.checkpoint, lambda found: (state_of(found), open_folder(found))
    )
    if config.context_length is not None:
        shorten(model, config.context_length)
    context = model.config.context_length
    check_stride(config.stride, context)
    choose = choose_hardware if config.quantize == "none" else decoding_hardware  # what is quantised is so for decoding
    hardware = choose(config.device, config.precision, model.config.n_embd)
    description = f"{folder}: {model.parameter_count():,} parameters, {hardware.describe(model.config.head_width)}"
    model.to(hardware.device).eval()
    if config.quantize != "none":
        description += ", " + lay_out(model, hardware, config.quantize)
    say(description)
    whole = config.part != "held_out"
    corpus = read_checkpoint(config.checkpoint, lambda again: prepared(config, again, whole), first=folder)
    source = corpus.source if whole else f"{corpus.source}, held-out part"
    say(f"evaluating on {source}: {len(corpus.val):,} tokens")
    if not whole and has_changed(config.data, corpus, state):
        say("the text has changed since the training, so this is another split, and not the run's val/loss")
    output = output_folder(config, folder)
    batch_size = config.batch_size or max(1, TOKENS_AT_ONCE // context)
    found = evaluate(model, corpus.val, tokenizer, hardware, batch_size, config.max_tokens, config.stride)
    result = {"checkpoint": str(folder.resolve()), "data": source, "context": context, "stride": config.stride}
    result |= {"quantize": config.quantize} if config.quantize != "none" else {}
    result |= figures(found)
    if isinstance(corpus.val, PairStream):
        assert output is not None  # pairs always have one
        result |= evaluate_pairs(config, model, tokenizer, corpus.val, output)
    line = json.dumps(without_nan(result), ensure_ascii=False, allow_nan=False) + "\n"
    if output is not None:
        write_whole(output / "scores.json", [line])
    sys.stdout.write(line)
    return 0


def prepared(config: EvaluateConfig, folder: Path, whole: bool) -> Corpus:
    """The corpus in the tokens of a model folder, which is that of the model or of a later checkpoint of its run."""
    own_tokenizer = TokenizerConfig(name="huggingface", path=str(find_tokenizer(folder)))
    return prepare(config.data, own_tokenizer, say, whole=whole)


def has_changed(data: DataConfig, corpus: Corpus, state: TrainerState | None) -> bool:
    """Whether a split corpus is, by its options, the one that a checkpoint was trained on, but not by its tokens."""
    if state is None:
        return False
    before, now = state.config.get("data", {}), to_dict(data)
    same = all(before.get(name) == now[name] for name in now if f"data.{name}" not in HOW_TO_PREPARE)
    return same and corpus.fingerprint[:12] not in str(state.identity.get("corpus"))


def shorten(model: Decoder, context_length: int) -> None:
    """Have a model see at most `context_length` tokens at once. Raises UserError where that is more than its own."""
    own = model.config.context_length
    if context_length > own:
        raise UserError(
            f"context_length={context_length}: the model was made for {own} tokens at once; give at most that, or "
            "leave out the option"
        )
    adapt(model, replace(model.config, context_length=context_length))


def check_stride(stride: int | None, context_length: int) -> None:
    if stride is not None and stride > context_length:
        raise UserError(
            f"stride={stride}: windows of {context_length} tokens, the context, would leave some out; give at most that"
        )


def output_folder(config: EvaluateConfig, folder: Path) -> Path | None:
    """The folder that the files go to, made now; None where there will be none. Raises UserError."""
    folder = folder.resolve()
    if config.output:
        path = Path(os.path.expanduser(config.output))
    elif config.data.name != "pairs":
        return None
    elif folder.parent.name == "checkpoints":
        path = folder.parent.parent / "evaluation" / folder.name
    else:
        path = Path("evaluations") / model_name(config.checkpoint)
    try:
        path.mkdir(parents=True, exist_ok=True)
        check_writable_folder(path)
    except OSError as error:
        raise UserError(f"output={path} cannot be written to ({error.strerror}); choose another folder") from None
    return path


def model_name(checkpoint: str) -> str:
    """What a user calls a model, as the name of one folder: `org--name@main`, or a path from here if it is below."""
    local = Path(os.path.expanduser(checkpoint))
    if local.exists():
        here, local = Path.cwd(), local.resolve()
        local = local.relative_to(here) if here in local.parents else local
        checkpoint = str(local) if here != local else local.name
    return checkpoint.strip("/").replace("/", "--")


def figures(found: Evaluation) -> dict[str, Any]:
    """An evaluation under the names of the result."""
    return {
        "tokens": found.n_tokens,
        "bytes": round(found.n_bytes),
        "loss": found.loss,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
    }


def evaluate_pairs(
    config: EvaluateConfig, model: Decoder, tokenizer: Tokenizer, stream: PairStream, output: Path
) -> dict[str, Any]:
    """Write a completion for each pair's prompt, at most `max_pairs`, and compare it with the pair's own."""
    chosen = list(islice(stream.pairs(), config.max_pairs))
    result: dict[str, Any] = {"pairs": stream.n_documents, "generated": len(chosen)}
    if not chosen:
        return result | {"scores": None, "generations": None}
    if config.quantize == "none":
        hardware = decoding_hardware(config.device, config.precision, model.config.n_embd)
        lay_out(model.to(hardware.dtype), hardware)
    made = complete(config, model, tokenizer, chosen)
    path = output / "generations.jsonl"
    write_whole(path, (json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in made))
    scores = score([each.prediction for each in made], [each.reference for each in made])
    return result | {"scores": asdict(scores), "generations": str(path)}


def complete(config: EvaluateConfig, model: Decoder, tokenizer: Tokenizer, pairs: Sequence[Pair]) -> list[Generation]:
    """A completion for each pair, in their order. Prompts of similar length are decoded together, the longest first."""
    order = sorted(range(len(pairs)), key=lambda number: -len(pairs[number][0]))
    size = (config.batch_size or max(DEFAULT_BATCH_SIZE, config.num_beams)) // config.num_beams
    made: dict[int, Generation] = {}
    reported = time.monotonic()
    for first in range(0, len(order), size):
        numbers = order[first : first + size]
        samples = continuations(config, model, tokenizer, [pairs[number][0] for number in numbers])
        for number, sample in zip(numbers, samples, strict=True):
            reference = tokenizer.decode(pairs[number][1])
            made[number] = Generation(sample.prompt, reference, sample.text, sample.ended)
        if time.monotonic() - reported > REPORT_EVERY:
            reported = time.monotonic()
            say(f"completions written: {len(made):,} of {len(pairs):,}")
    return [made[number] for number in range(len(pairs))]


def continuations(
    config: EvaluateConfig, model: Decoder, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]]
) -> list[Sample]:
    """The likeliest continuation of each prompt that greedy decoding or beam search finds."""
    if config.num_beams > 1:
        found = beam_search(
            model, tokenizer, prompts,
            num_beams=config.num_beams, num_return=1, max_new_tokens=config.max_new_tokens, stop=config.stop,
        )  # fmt: skip
        return [best for (best,) in found]
    jobs = [(prompt, 0) for prompt in prompts]
    greedy = Sampling(temperature=0)
    *_, samples = generate(model, tokenizer, jobs, greedy, max_new_tokens=config.max_new_tokens, stop=config.stop)
    return samples


def without_nan(value: Any) -> Any:
    """The value with None for every number in it that is not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
