"""Options of `evaluate.py`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from gpt.config.data import DataConfig
from gpt.config.device import (
    CHECKPOINT,
    PRECISIONS,
    QUANTIZE,
    QUANTIZED,
    checkpoint_mistakes,
    device_mistakes,
    quantize_mistakes,
)
from gpt.config.sampling import DEFAULT_BATCH_SIZE, DEFAULT_NEW_TOKENS, decoding_mistakes
from gpt.options import Mistake, Options, group, option

TOKENS_AT_ONCE = 8192  # of a batch whose size is not given
FOR_PAIRS = ("max_new_tokens", "num_beams", "max_pairs", "stop")


@dataclass(frozen=True)
class EvaluateConfig(Options):
    """Everything `evaluate.py` takes."""

    checkpoint: str = option("", CHECKPOINT, free_text=True)
    part: str = option(
        "auto",
        "held_out: what training holds out, by data.val_files or data.val_fraction; auto: that where no data option "
        "is given, or data.val_files, else all",
        choices=("auto", "all", "held_out"),
    )
    context_length: int | None = option(
        None, "tokens the model sees at once, at most its own context; null: that", unit="tokens", low=1
    )
    stride: int | None = option(
        None,
        "windows overlap and start so many tokens apart, so that each token is predicted from more context; null: no "
        "overlap, as in val/loss",
        unit="tokens",
        low=1,
    )
    max_tokens: int | None = option(
        None,
        "evaluate only the first so many; null: all. A run's val/loss: its train.eval_tokens",
        unit="tokens",
        low=1,
    )
    batch_size: int | None = option(
        None,
        f"sequences at once, each beam being one; null: for the loss as many as hold {TOKENS_AT_ONCE:,} tokens, for "
        f"completions {DEFAULT_BATCH_SIZE}",
        unit="sequences",
        low=1,
    )
    device: str = option("auto", "auto: cuda, else mps, else cpu; also cuda:1")
    precision: str = option(
        "auto",
        "auto: as in training, bf16 where the hardware multiplies it faster, fp16 on older GPUs, else fp32",
        choices=("auto", *PRECISIONS),
    )
    quantize: str = option("none", QUANTIZE, choices=QUANTIZED)
    max_new_tokens: int = option(DEFAULT_NEW_TOKENS, "data=pairs: longest completion written", unit="tokens", low=1)
    num_beams: int = option(1, "data=pairs: 1: always the likeliest token; above: beam search", low=1)
    max_pairs: int | None = option(
        None, "data=pairs: write completions for the first so many; null: all; 0: only the loss", unit="pairs", low=0
    )
    stop: tuple[str, ...] = option(
        (), "data=pairs: end before this text; repeat the option for several", free_text=True, escapes=True
    )
    output: str = option(
        "",
        "folder for scores.json and generations.jsonl, whose old ones are replaced; empty: for pairs "
        "RUN/evaluation/STEP, or evaluations/NAME for another model, its path or Hub id with -- for each slash; else "
        "none",
        free_text=True,
    )
    data: DataConfig = group(  # noqa: RUF009
        DataConfig, "text to evaluate; what is not said is as in the checkpoint's training, unless data=… is chosen"
    )

    def mistakes(self) -> list[Mistake]:
        found = checkpoint_mistakes(self.checkpoint) + device_mistakes(self.device)
        found += quantize_mistakes(self.quantize, self.precision)
        if self.data.name != "pairs":
            defaults = {spec.name: spec.default for spec in fields(self)}
            changed = [name for name in FOR_PAIRS if getattr(self, name) != defaults[name]]
            found += [Mistake(name, f"is only for data=pairs, not {self.data.name}") for name in changed]
        elif self.stride is not None:
            found.append(Mistake("stride", "does not go with data=pairs: each pair is one window; leave it out"))
        return found + decoding_mistakes(self.num_beams, self.batch_size, self.stop)
