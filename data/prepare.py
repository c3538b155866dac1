"""Tokenize a corpus ahead of time: `python data/prepare.py data=… tokenizer=…`, with the options of train.py.

Prints the folder with the token shards on standard output. train.py does the same by itself when it has to; this is
for doing it on another machine, or once before many runs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt.cli import Command, main
from gpt.config import RunConfig
from train import COMMAND as TRAIN

COMMAND = Command(
    kind=RunConfig,
    config="train",
    adopt=TRAIN.adopt,
    implications=TRAIN.implications,
    description="Tokenize a corpus ahead of time; train.py with the same data and tokenizer then starts at once.",
    examples=(
        "python data/prepare.py data=text data.files='[book.txt,notes/**/*.md]' tokenizer=bpe",
        "python data/prepare.py data=huggingface data.path=roneneldan/TinyStories data.column=text tokenizer=gpt2",
    ),
    listed=("init_from", "data", "tokenizer"),
)


def run(config: RunConfig) -> int:
    from gpt.text.shards import prepare

    corpus = prepare(config.data, config.tokenizer, lambda line: print(line, file=sys.stderr, flush=True))
    print(corpus.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(COMMAND, run))
