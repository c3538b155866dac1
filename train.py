"""Train a GPT: `python train.py --help` lists every option."""

import sys

from gpt.cli import Command, main
from gpt.config import RunConfig

COMMAND = Command(
    kind=RunConfig,
    config="train",
    description="Train a GPT on your own text. Without options it trains a small one on Python's standard library.",
    examples=(
        "python train.py",
        "python train.py data=text data.files='[book.txt,notes/**/*.md]'",
        r"python train.py data=jsonl data.files='[poems.jsonl]' data.template='{title}\n{author}\n{text}'",
        "python train.py data=text data.files='[book.txt]' tokenizer=char train.max_steps=2000 run_dir=runs/book",
    ),
)


def run(config: RunConfig) -> int:
    from gpt.training.run import train  # torch is slow to import, and `--help` does without

    return train(config)


if __name__ == "__main__":
    sys.exit(main(COMMAND, run))
