"""The door: YAML files and the command line become one validated, frozen configuration, or one list of mistakes.

The only file that imports Hydra and OmegaConf, and only when it composes, so `--help` answers at once. Hydra's
compose API is used, not `@hydra.main`, which would write `outputs/` and take over logging. The defaults of
`gpt/config` enter Hydra as a plain dict; `gpt/config` converts and judges what comes out.

Exit status: 0 the whole job is done; 1 a bug or the machine (a full disk); 2 a mistake that the user can mend;
130 interrupted; 141 the reader of standard output went away.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from gpt.arguments import CONFIGS, Arguments, Command, check_choices, leaves, parse
from gpt.help import help_text
from gpt.options import C, ConfigError, Mistake, UserError, defaults, look_up, read_dict, written

__all__ = ["Command", "load_config", "main"]

MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE)
PATH_ERRORS = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS)


def main(command: Command[C], run: Callable[[C], int | None], argv: Sequence[str] | None = None) -> int:
    """Reads the command line, calls `run` with the configuration, and returns the exit status.

    Mistakes go to standard error without a traceback. Any other exception of `run` is a bug and passes through.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    config: C | None = None
    try:
        if "--help" in argv or "-h" in argv:
            print(help_text(command, _script()), end="", flush=True)
            return 0
        if "--multirun" in argv or "-m" in argv:
            return _multirun(command, [argument for argument in argv if argument not in ("--multirun", "-m")])
        config = load_config(command, argv)
        status = run(config)
        sys.stdout.flush()
        return status or 0
    except ConfigError as error:
        if config is not None or os.environ.get("RANK", "0") == "0":  # all ranks read the same command line
            _say(_listing(error))
        return 2
    except UserError as error:
        _say(f"{_script()}: {error}")
        return 2
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except OSError as error:
        status = _status_of(error, config)
        if status is None:
            raise
        return status


def load_config(command: Command[C], argv: Sequence[str]) -> C:
    """The configuration that the arguments ask for. Raises `ConfigError` with all mistakes in them."""
    given = parse(command, argv)
    for name, text in [*given.choices.items(), *given.ordinary.items()]:
        if _sweep(name, text) is not None:
            given.refuse(name, "is several values; give one, or add --multirun to run them all", text)
            (given.choices if name in given.choices else given.ordinary).pop(name)
    check_choices(command, given)
    if "experiment" in given.doubtful:  # any option may hang on it
        given.doubtful.update(command.groups())
    values = _compose(command, given)
    config, found = read_dict(command.kind, values, given.doubtful)
    if given.mistakes or config is None:
        raise ConfigError([*given.mistakes, *found])
    return config


def _compose(command: Command, given: Arguments) -> dict[str, Any]:
    """Hydra's composition of files, choices and ordinary values, as plain dicts, with the free text put in."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    overrides = [f"{name}={choice}" for name, choice in given.choices.items()]
    literal = dict(given.free)
    for name, text in given.ordinary.items():
        if _override(f"{name}={text}") is None:
            literal[name] = text  # not Hydra's grammar, so not a number or word: its type will say what it must be
        else:
            overrides.append(f"{name}={text}")
    ConfigStore.instance().store(name=f"{command.config}_options", node=defaults(command.kind))
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            composed = compose(command.config, overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(
            f"{CONFIGS}: the configuration files do not fit together: {' '.join(str(error).split())}"
        ) from error
    choices = composed.hydra.runtime.choices
    default_run = f"runs/{choices.get('data')}-{choices.get('model')}"
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    values = _plain(composed, given)
    for name, value in literal.items():
        group, _, last = name.rpartition(".")
        (values[group] if group else values)[last] = value
    if values.get("run_dir") == "":
        values["run_dir"] = default_run
    return values


def _plain(node: Any, given: Arguments, prefix: str = "") -> dict[str, Any]:
    """The node as plain dicts; an interpolation that leads nowhere becomes a mistake."""
    from omegaconf import DictConfig, ListConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    plain: dict[str, Any] = {}
    for key in node:
        try:
            value = node[key]
            plain[key] = OmegaConf.to_container(value, resolve=True) if isinstance(value, ListConfig) else value
        except OmegaConfBaseException:
            raw = str(dict(OmegaConf.to_container(node, resolve=False))[key])  # type: ignore[arg-type]
            given.refuse(f"{prefix}{key}", "refers to something that is not there", raw)
            continue
        if isinstance(value, DictConfig):
            plain[key] = _plain(value, given, f"{prefix}{key}.")
    return plain


def _override(argument: str) -> Any:
    """Hydra's reading of `name=value`, or None where it is not in its grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def _sweep(name: str, text: str) -> list[str] | None:
    """The values, as text, where Hydra's grammar reads several: `1,2`, `range(1,3)`; [] if not countable."""
    from hydra.errors import HydraException

    override = _override(f"{name}={text}")
    if override is None or not override.is_sweep_override():
        return None
    try:
        return list(dict.fromkeys(override.sweep_string_iterator()))
    except HydraException:
        return []


def _multirun(command: Command, argv: Sequence[str]) -> int:
    """Runs each combination of swept values in a process of its own; 1 where any failed."""
    runs = plan_runs(command, argv)
    start = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])]  # the interpreter, its flags and the script
    failed = []
    for number, (folder, arguments) in enumerate(runs.items(), 1):
        _say(f"run {number} of {len(runs)}: {folder}")
        status = _wait([*start, *arguments])
        if status in (130, -signal.SIGINT):
            return 130
        if status:
            failed.append(f"{folder} (exit status {status})")
    if failed:
        _say(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")
    return 1 if failed else 0


def plan_runs(command: Command, argv: Sequence[str]) -> dict[str, list[str]]:
    """The folder of each run of a sweep, and its arguments.

    The swept values make the folder, `runs/stdlib-mini/optimizer.lr=0.001`, so the same sweep again continues
    each run. All combinations are validated before any starts: raises `ConfigError` with their mistakes.
    """
    if not any(leaf.name == "run_dir" for leaf in leaves(command.kind)):
        raise ConfigError([Mistake("--multirun", "only train.py has runs; give one value to each option")])
    if "RANK" in os.environ:
        raise ConfigError([Mistake("--multirun", "starts its runs itself and does not go with torchrun")])
    given = parse(command, argv)
    found = {str(mistake): mistake for mistake in given.mistakes}
    swept: dict[str, list[str]] = {}
    for name, text in [*given.choices.items(), *given.ordinary.items()]:
        values = _sweep(name, text)
        if values:
            swept[name] = values
    if not swept and not found:
        raise ConfigError([Mistake("--multirun", "no option has several values, as optimizer.lr=3e-4,1e-3")])
    fixed = [argument for argument in argv if argument.partition("=")[0] not in swept]
    runs: dict[str, list[str]] = {}
    for combination in product(*swept.values()):
        arguments = fixed + [f"{name}={value}" for name, value in zip(swept, combination, strict=True)]
        try:
            config = load_config(command, arguments)
        except ConfigError as error:
            found.update({str(mistake): mistake for mistake in error.mistakes})
            continue
        # The value as it was understood, so that 1e-3 and 0.001 are the same run.
        known = {name: value for name, value in zip(swept, combination, strict=True) if name in given.choices}
        parts = [f"{name}={known.get(name) or written(look_up(config, name))}".replace("/", "-") for name in swept]
        folder = str(Path(look_up(config, "run_dir")) / ",".join(parts))
        kept = [argument for argument in arguments if not argument.startswith("run_dir=")]
        runs[folder] = [*kept, f"run_dir={folder}"]
    if found:
        raise ConfigError(list(found.values()))
    return runs


def _wait(arguments: list[str]) -> int:
    """Runs a process to its end and returns its status. It gets our Ctrl-C and SIGTERM, and time to finish on them."""
    process = subprocess.Popen(arguments)
    interrupted = False

    def stop(number: int, frame: object) -> None:
        process.send_signal(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        while True:
            try:
                status = process.wait()
                return 130 if interrupted else status
            except KeyboardInterrupt:  # the terminal sends Ctrl-C to both processes
                interrupted = True
    finally:
        signal.signal(signal.SIGTERM, before)


def _status_of(error: OSError, config: Any) -> int | None:
    """The exit status of an error that is not a bug, after a line about it; None for a bug."""
    if isinstance(error, BrokenPipeError) and _reader_went_away():
        return 141
    ours = [str(path) for path in (error.filename, error.filename2) if isinstance(path, (str, os.PathLike))]
    users = any(_is_inside(path, folder) for path in ours for folder in _paths(config))
    where = f"{', '.join(ours)}: " if ours else ""
    if error.errno in MACHINE_ERRORS:
        status = 1
    elif error.errno in PATH_ERRORS and users:
        status = 2
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        status = 1
    else:
        return None
    _say(f"{_script()}: {where}{error.strerror or error}")
    return status


def _reader_went_away() -> bool:
    """Whether standard output or error is a pipe that nobody reads any more, as in `sample.py | head`.

    Silences that pipe, or Python would complain about it at exit.
    """
    closed = []
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if any(events & select.POLLERR for _, events in poll.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            closed.append(descriptor)
    return bool(closed)


def _paths(config: Any) -> list[str]:
    """The values of the configuration that may be paths which the user gave."""
    if config is None:
        return []
    values = [look_up(config, leaf.name) for leaf in leaves(type(config)) if leaf.rule.free_text]
    return [text for value in values if value for text in (value if isinstance(value, tuple) else (value,))]


def _is_inside(path: str, folder: str) -> bool:
    path, folder = os.path.abspath(path), os.path.abspath(folder)
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _listing(error: ConfigError) -> str:
    number = len(error.mistakes)
    lines = [f"{number} mistake{'s' if number != 1 else ''} in the options:"]
    lines += [f"  {mistake}" for mistake in error.mistakes]
    return "\n".join([*lines, f"python {_script()} --help lists every option."])


def _script() -> str:
    return Path(sys.argv[0]).name or "newleaf"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
