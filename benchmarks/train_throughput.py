"""Tokens per second and peak memory of a training step of GPT-2 124M, next to transformers and nanoGPT.

    git clone https://github.com/karpathy/nanoGPT
    python -m benchmarks.train_throughput --nanogpt nanoGPT --shapes 4x256 2x1024
    python -m benchmarks.train_throughput --gradients

A step is forward, backward, clipping the norm at 1 and one AdamW update, on 50,257 tokens, dropout 0, tokens at random
from a fixed generator. Every repetition is a process of its own: two steps to warm up, then `--steps` timed ones, of
which the median counts. Newleaf runs `Trainer.update` itself, with all that it does for its users: batches from the
corpus's files, schedule, check for numbers that are not finite.

- transformers: `GPT2LMHeadModel`, fused AdamW (its Trainer's default); fp32, and under bf16 autocast.
- nanoGPT: as published, which on a CPU means fp32 and unfused AdamW; and patched to bf16 autocast and fused AdamW.
- Newleaf: `model=gpt2 tokenizer=gpt2 optimizer=adamw`; and `model=modern` with the default optimizer, muon.

`--gradients` compares the gradient of the same weights on the same tokens with that of transformers in plain fp32: what
counts is that Newleaf's bf16 differs no more than transformers' own under autocast.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import in_turn, median, peak_bytes, print_table, spread, worker, write_json

VOCAB_SIZE, CONTEXT = 50_257, 1024
WARM_UP = 2  # steps: the first makes the optimizer's state, the second still meets fresh memory
NEWLEAF = {"Newleaf": ["model=gpt2", "optimizer=adamw"], "Newleaf modern, muon": ["model=modern"]}
CONTENDERS = (
    "transformers fp32",
    "transformers bf16",
    "nanoGPT as published",
    "nanoGPT bf16, fused AdamW",
    *NEWLEAF,
)


def newleaf_update(options: list[str], batch: int, context: int) -> Callable[[], float]:
    """One `Trainer.update` on a corpus of random tokens; it returns the loss."""
    from gpt.composition import load_config
    from gpt.model.hardware import choose_hardware
    from gpt.training.trainer import Trainer
    from train import COMMAND

    folder = Path(tempfile.mkdtemp(prefix="train-throughput-"))
    shape = [f"model.context_length={context}", f"train.batch_size={batch}"]
    config = load_config(COMMAND, ["tokenizer=gpt2", *options, *shape, f"run_dir={folder / 'run'}"])
    hardware = choose_hardware("auto", "auto", config.model.n_embd, config.train.compile)
    print(hardware.describe(config.model.head_width), file=sys.stderr)
    trainer = Trainer(config, random_corpus(folder), hardware, folder / "run")
    return lambda: trainer.update()[0].item()


def random_corpus(folder: Path) -> Any:
    """A prepared corpus of 2^19 random tokens of GPT-2."""
    import numpy as np

    from gpt.config import TokenizerConfig
    from gpt.text.shards import Corpus
    from gpt.text.streams import PAIR, StreamWriter, open_stream
    from gpt.text.vocabularies import build_tokenizer

    tokenizer = build_tokenizer(TokenizerConfig(name="gpt2"))
    generator = np.random.default_rng(0)
    streams = []
    for split in ("train", "val"):
        writer = StreamWriter(folder / f"{split}.bin", None, tokenizer.dtype)
        writer.write(generator.integers(0, VOCAB_SIZE, 2**19), np.zeros(0, dtype=PAIR))
        writer.publish()
        meta = {
            "documents": 1,
            "characters": 2**21,
            "bytes": 2**21,
            "shards": [{"file": f"{split}.bin", "tokens": 2**19}],
        }
        streams.append(open_stream(folder, tokenizer, meta))
    train, val = streams
    return Corpus(tokenizer, train, val, "random", folder, "random tokens")


def peer_update(name: str, batch: int, context: int, nanogpt: Path) -> Callable[[], float]:
    """One step of a peer's model as its own training does it; it returns the loss."""
    import torch

    bf16 = "bf16" in name
    torch.manual_seed(0)
    model = transformers_model() if name.startswith("transformers") else nanogpt_model(nanogpt)
    model.train()
    if name.startswith("transformers"):
        optimizer: Any = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.1, fused=True)
    else:
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")
        if bf16:
            optimizer = torch.optim.AdamW(optimizer.param_groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
    generator = torch.Generator().manual_seed(0)

    def update() -> float:
        inputs, targets = torch.randint(VOCAB_SIZE, (2, batch, context), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if name.startswith("transformers"):  # which shifts the labels itself
                loss = model(inputs, labels=inputs).loss
            else:
                _, loss = model(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return update


def transformers_model() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False))


def nanogpt_model(checkout: Path) -> Any:
    """GPT-2 124M with the options of nanoGPT's `train.py`: no biases, 50,304 tokens."""
    sys.path.insert(0, str(checkout))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    return GPT(GPTConfig(block_size=CONTEXT, vocab_size=50_304, dropout=0.0, bias=False))


def measure(name: str, shape: str, steps: int, nanogpt: Path) -> dict[str, Any]:
    batch, context = map(int, shape.split("x"))
    if name in NEWLEAF:
        update = newleaf_update(NEWLEAF[name], batch, context)
    else:
        update = peer_update(name, batch, context, nanogpt)
    for _ in range(WARM_UP):
        update()
    seconds, losses = [], []
    for _ in range(steps):
        started = time.perf_counter()
        losses.append(update())
        seconds.append(time.perf_counter() - started)
    rate = batch * context / statistics.median(seconds)
    return {"tokens_per_second": rate, "seconds": seconds, "peak_bytes": peak_bytes(), "loss": losses[-1]}


def gradient_differences(shape: str) -> dict[str, dict[str, float]]:
    """Norm of the difference from transformers' fp32 gradient over the norm of that: of all together, and the largest
    of any one tensor."""
    import torch

    from gpt.model.hardware import Hardware
    from gpt.model.huggingface import load_model

    batch, context = map(int, shape.split("x"))
    torch.manual_seed(0)
    theirs = transformers_model().train()
    tokens = torch.randint(VOCAB_SIZE, (batch, context + 1))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_model(Path(folder)).train()

    def their_gradient(bf16: bool) -> dict[str, torch.Tensor]:
        theirs.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = theirs(tokens[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
        return {name: p.grad.clone() for name, p in theirs.named_parameters() if p.grad is not None}

    def our_gradient(precision: str) -> dict[str, torch.Tensor]:
        ours.zero_grad()
        with Hardware(torch.device("cpu"), precision).autocast():
            loss = ours(tokens[:, :-1], tokens[:, 1:]) / (batch * context)
        loss.backward()
        return dict(in_their_names(ours))

    exact = their_gradient(False)
    found = {
        "transformers bf16": their_gradient(True),
        "Newleaf bf16": our_gradient("bf16"),
        "Newleaf fp32": our_gradient("fp32"),
    }
    return {name: compare(gradient, exact) for name, gradient in found.items()}


def in_their_names(model: Any) -> Iterator[tuple[str, Any]]:
    """Gradients of a decoder of ours by transformers' names, in their layout."""
    from gpt.model.dialects import tensor_table

    for entry in tensor_table(model.config, model.vocab_size):
        gradient = model.get_parameter(entry.ours).grad[entry.rows]
        yield entry.theirs, (gradient.T if entry.transposed else gradient).clone()


def compare(gradient: dict[str, Any], exact: dict[str, Any]) -> dict[str, float]:
    assert gradient.keys() == exact.keys(), gradient.keys() ^ exact.keys()
    apart = {name: (gradient[name] - exact[name]).double().square().sum().item() for name in exact}
    whole = {name: exact[name].double().square().sum().item() for name in exact}
    of_one = {name: (apart[name] / whole[name]) ** 0.5 for name in exact}
    worst = max(of_one, key=of_one.__getitem__)
    total = (sum(apart.values()) / sum(whole.values())) ** 0.5
    return {"all": total, "median": statistics.median(of_one.values()), "most": of_one[worst]}


def print_gradients(shape: str, output: Path | None) -> None:
    found = gradient_differences(shape)
    rows = [
        [name, *(f"{100 * figures[key]:.3g} %" for key in ("all", "median", "most"))] for name, figures in found.items()
    ]
    print_table(
        [f"difference of the gradient at {shape} from plain fp32", "of all", "median tensor", "worst tensor"], rows
    )
    write_json(output, found, shape=shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--shapes", nargs="+", default=["4x256"], help="batch x context, such as 4x256 2x1024 8x512")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--repeats", type=int, default=3, help="processes for each contender and shape")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a process")
    parser.add_argument("--gradients", action="store_true", help="compare gradients instead, at the first shape")
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    nanogpt, shapes = arguments.nanogpt, arguments.shapes
    if arguments.gradients:
        return print_gradients(shapes[0], arguments.output)
    asked_for = [arguments.worker] if arguments.worker else arguments.contenders
    if nanogpt is None and any(name.startswith("nanoGPT") for name in asked_for):
        parser.error("--nanogpt is missing: a checkout of nanoGPT, or leave it out of --contenders")
    if arguments.worker:
        return print(json.dumps(measure(arguments.worker, shapes[0], arguments.steps, nanogpt)))
    everything = {}
    for shape in shapes:
        common = ["--shapes", shape, "--steps", arguments.steps]
        common += ["--nanogpt", nanogpt.resolve()] if nanogpt else []
        commands = {name: worker("train_throughput", name, *common) for name in arguments.contenders}
        results = everything[shape] = in_turn(commands, arguments.repeats)
        best_peer = max(
            (median(results, name, "tokens_per_second") for name in results if name not in NEWLEAF), default=None
        )
        rows = [
            [
                name,
                spread(results, name, "tokens_per_second"),
                f"{median(results, name, 'tokens_per_second') / best_peer:.2f}" if best_peer else "",
                f"{median(results, name, 'peak_bytes') / 2**30:.2f}",
            ]
            for name in results
        ]
        print_table([f"GPT-2 124M, {shape}", "tokens/s", "of the best peer", "peak GiB"], rows)
        print()
    write_json(arguments.output, everything, steps=arguments.steps, repeats=arguments.repeats)
    return None


if __name__ == "__main__":
    main()
