"""Train a GPT: `python train.py --help` lists every option."""

from typing import Any

from gpt.arguments import Arguments, Implication
from gpt.cli import Command, leave, loading, main
from gpt.config import RunConfig
from gpt.config.device import processes
from gpt.options import ConfigError, Mistake


def adopt(values: dict[str, Any], given: set[str]) -> None:
    if values["init_from"]:
        from gpt.training.initial import adopt_model  # torch is slow to import, and `--help` does without

        adopt_model(values, given)
    share_global_batch(values, given)


def share_global_batch(values: dict[str, Any], given: set[str]) -> None:
    """`train.grad_accum_steps` follows from a global batch that is given, for any number of processes."""
    train, planned = values["train"], values["plan"] in (True, "true")
    world = values["cluster"]["gpus"] if planned else processes()
    whole, size = train["global_batch_size"], train["batch_size"]
    if not all(isinstance(n, int) and n > 0 for n in (whole, size, world, train["grad_accum_steps"])):
        return
    if "train.grad_accum_steps" not in given and whole % (size * world) == 0:
        train["grad_accum_steps"] = whole // size // world
    if planned:  # for processes that are not there, so it is checked here, and not with the others
        count = train["grad_accum_steps"]
        if whole != size * count * world:
            message = (
                f"is not train.batch_size={size} times train.grad_accum_steps={count} times cluster.gpus={world}; "
                "change one of them"
            )
            raise ConfigError([Mistake("train.global_batch_size", message, str(whole))])
        train["global_batch_size"] = None


def keep_global_batch(values: dict[str, Any], given: Arguments) -> None:
    """With `train.batch_size=auto` an update has as many sequences as it would have without that."""
    train, option = values["train"], "train.grad_accum_steps"
    numbers = train["batch_size"], train["grad_accum_steps"]
    if train["global_batch_size"] is None and all(isinstance(number, int) for number in numbers):
        train["global_batch_size"] = numbers[0] * numbers[1] * processes()
    elif option in given.ordinary:
        given.refuse(option, "follows from train.batch_size=auto; leave it out", given.ordinary[option])


COMMAND = Command(
    kind=RunConfig,
    config="train",
    description="Train a GPT on your own text. Without options it trains a small one on Python's standard library.",
    examples=(
        "python train.py",
        "python train.py data=text data.files='[book.txt,notes/**/*.md]'",
        r"python train.py data=jsonl data.files='[poems.jsonl]' data.template='{title}\n{author}\n{text}'",
        "python train.py data=text data.files='[book.txt]' tokenizer=char train.max_steps=2000 run_dir=runs/book",
        "python train.py init_from=gpt2 data=text data.files='[book.txt]'",
        r"python train.py init_from=gpt2 data=pairs data.files='[qa.jsonl]' data.prompt='{question}\n' "
        "data.completion='{answer}'",
    ),
    adopt=adopt,
    before_words=keep_global_batch,
    implications=(Implication("lora.rank", "experiment", "lora"), Implication("init_from", "experiment", "finetune")),
)


def run(config: RunConfig) -> int:
    with loading():
        if config.plan:
            from gpt.training.planner import plan as train
        else:
            from gpt.training.run import train

    return train(config)


if __name__ == "__main__":
    leave(main(COMMAND, run))
