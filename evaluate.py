"""Measure a model on held-out text: `python evaluate.py --help` lists every option."""

from typing import Any

from gpt.cli import Command, leave, loading, main
from gpt.config import EvaluateConfig


def adopt(values: dict[str, Any], given: set[str]) -> None:
    from gpt.training.evaluate_checkpoint import adopt_data  # torch is slow to import, and `--help` does without

    adopt_data(values, given)


COMMAND = Command(
    kind=EvaluateConfig,
    config="evaluate",
    description="Measure a model: its loss on text, and the completions that it writes for pairs. Prints one JSON "
    "object. Without data options, the text is the held-out part of what the checkpoint was trained on.",
    examples=(
        "python evaluate.py checkpoint=runs/stdlib-mini",
        "python evaluate.py checkpoint=runs/stdlib-mini stride=128",
        "python evaluate.py checkpoint=runs/mine data=text data.files='[held-out.txt]'",
        r"python evaluate.py checkpoint=runs/qa data=pairs data.files='[test.jsonl]' data.prompt='{question}\n' "
        "data.completion='{answer}' num_beams=4",
    ),
    adopt=adopt,
)


def run(config: EvaluateConfig) -> int:
    with loading():
        from gpt.training.evaluate_checkpoint import evaluate_checkpoint

    return evaluate_checkpoint(config)


if __name__ == "__main__":
    leave(main(COMMAND, run))
