"""Tokenize a corpus ahead of time: `python data/prepare.py data=… tokenizer=…`, with the options of train.py.

Prints the folder with the token shards on standard output. train.py does the same by itself when it has to; this is
for doing it on another machine, on several at once, or once before many runs. What is there already is checked whole,
of which train.py takes a large corpus at its word.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt.cli import Command, leave, main
from gpt.config import PreparationConfig
from train import COMMAND as TRAIN

COMMAND = Command(
    kind=PreparationConfig,
    config="train",
    adopt=TRAIN.adopt,
    before_words=TRAIN.before_words,
    implications=TRAIN.implications,
    description="Tokenize a corpus ahead of time; train.py with the same data and tokenizer then starts at once.",
    examples=(
        "python data/prepare.py data=text data.files='[book.txt,notes/**/*.md]' tokenizer=bpe",
        "python data/prepare.py data=huggingface data.path=roneneldan/TinyStories data.column=text tokenizer=gpt2",
        "srun --ntasks 16 bash -c 'python data/prepare.py data=… shard=$SLURM_PROCID/$SLURM_NTASKS'",
    ),
    listed=("shard", "init_from", "data", "tokenizer"),
)


def run(config: PreparationConfig) -> int:
    from gpt.text.cooperation import Shard
    from gpt.text.shards import prepare

    report = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    corpus = prepare(config.data, config.tokenizer, report, shard=Shard(*config.shard_of), thorough=True)
    print(corpus.folder)
    return 0


if __name__ == "__main__":
    leave(main(COMMAND, run))
