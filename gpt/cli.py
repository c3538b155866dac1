"""The door: the command line becomes one configuration, the script runs with it, and its end becomes an exit status.

Exit status: 0 the whole job is done; 1 a bug or the machine (a full disk); 2 a mistake that the user can mend;
130 interrupted; 141 nobody reads standard output any more, or standard error while a run trains, which is saved.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from gpt.arguments import Command, leaves, parse
from gpt.composition import load_config
from gpt.help import help_text
from gpt.options import (
    C,
    ConfigError,
    UserError,
    complain,
    look_up,
    ran_out_of_memory,
    say,
    silence,
)
from gpt.signals import was_interrupted
from gpt.sweeps.options import refuse_without_multirun
from gpt.sweeps.running import run_sweep

__all__ = ["Command", "leave", "loading", "main"]

MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
PATH_ERRORS = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS)


def main(command: Command[C], run: Callable[[C], int | None], argv: Sequence[str] | None = None) -> int:
    """Reads the command line, calls `run` with the configuration, and returns the exit status.

    Mistakes go to standard error without a traceback. Any other exception of `run` is a bug and passes through.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # whoever closed it wants nothing
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open until the process ends)
    config: C | None = None
    try:
        if "--help" in argv or "-h" in argv:
            print(help_text(command, _script()), end="", flush=True)
            return 0
        if "--multirun" in argv or "-m" in argv:
            return run_sweep(command, [argument for argument in argv if argument not in ("--multirun", "-m")])
        refuse_without_multirun(command, argv)
        config = load_config(command, argv)
        for group, choice in command.implied(parse(command, argv)).items():
            say(f"{group}={choice} follows from the other options; {group}=… chooses another, {group}=null none")
        status = run(config)
        sys.stdout.flush()
        return status or 0
    except (Exception, KeyboardInterrupt) as error:
        status = _end(error, argv, config)
        if status is None:
            raise
        return status


def leave(status: int) -> NoReturn:
    """End the process after `main`. From now on Ctrl-C ends it without a traceback. Where one has, it ends at once: the
    usual end waits for threads and processes of libraries, such as those of a download."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if status != 128 + signal.SIGINT:
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _end(error: BaseException, argv: Sequence[str], config: Any) -> int | None:
    """The exit status for what has ended `main`, after a line about it; None for a bug."""
    if isinstance(error, OSError) and (status := _status_of(error, _given_paths(argv, config))) is not None:
        return status
    if was_interrupted(error):
        with suppress(KeyboardInterrupt):
            complain("interrupted")
        return 130
    if isinstance(error, ConfigError):
        (say if config is None else complain)(_listing(error))  # all processes of a run read the same command line
        return 2
    if isinstance(error, UserError):
        complain(f"{_script()}: {error}")
        return 2
    if isinstance(error, UnicodeEncodeError) and error.encoding == getattr(sys.stdout, "encoding", None):
        complain(
            f"{_script()}: standard output takes only {error.encoding}, without {error.object[error.start]!r}; set "
            "PYTHONIOENCODING=utf-8, or have the text written to a file"
        )
        return 2
    if isinstance(error, (RuntimeError, MemoryError, ImportError, SystemError)):
        if ran_out_of_memory(error):
            complain(_out_of_memory(error, config))
            return 1
        if "home directory" in str(error):  # how pathlib says that there is no such ~user
            way_out = "write the path out, or begin with ./~"
            complain(f"{_script()}: {_tilde(argv)}: there is no user of that name; {way_out}")
            return 2
    return None


@contextmanager
def loading() -> Iterator[None]:
    """For the import of torch and whatever uses it: half a million objects, none of them garbage, among which Python
    then searches for cycles neither meanwhile nor later nor at exit: together a third of a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.freeze)  # also what has come since


def _status_of(error: OSError, given: list[str]) -> int | None:
    """The exit status of an error that is not a bug, after a line about it; None for a bug."""
    if isinstance(error, BrokenPipeError) and _reader_went_away():
        return 141
    ours = [str(path) for path in (error.filename, error.filename2) if isinstance(path, (str, os.PathLike))]
    users = any(_is_inside(path, folder) for path in ours for folder in given)
    where = f"{', '.join(map(_shortened, ours))}: " if ours else ""
    if error.errno in MACHINE_ERRORS:
        status = 1
    elif error.errno in PATH_ERRORS and users:
        status = 2
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        status = 1
    else:
        return None
    way_out = "; check the path" if status == 2 else ""
    complain(f"{_script()}: {where}{error.strerror or error}{way_out}")
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
            silence(descriptor)
            closed.append(descriptor)
    return bool(closed)


def _given_paths(argv: Sequence[str], config: Any) -> list[str]:
    """The values that may be paths which the user gave; of the arguments, where there is no configuration yet."""
    if config is None:
        return [os.path.expanduser(text) for _, _, text in (argument.partition("=") for argument in argv) if text]
    values = [look_up(config, leaf.name) for leaf in leaves(type(config)) if leaf.rule.free_text]
    return [text for value in values if value for text in (value if isinstance(value, tuple) else (value,))]


def _is_inside(path: str, folder: str) -> bool:
    path, folder = os.path.abspath(path), os.path.abspath(folder)
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _shortened(path: str) -> str:
    return path if len(path) <= 300 else f"{path[:100]}…{path[-100:]} ({len(path)} characters)"


def _tilde(argv: Sequence[str]) -> str:
    """The arguments with a path that begins with ~ and a name."""
    found = [argument for argument in argv if re.search(r"(^|=|\[|,)~[^/]", argument)]
    return _shortened(" ".join(found)) if found else "a path begins with ~"


def _out_of_memory(error: Exception, config: Any) -> str:
    reason = re.sub(r"^\[.*?\][ .]*(err == 0[ .]*)?", "", str(error))  # the place in torch's source
    reason = reason.partition("\n")[0].partition(". ")[0]
    smaller = "a smaller batch_size or model" if hasattr(config, "batch_size") else "a smaller model"
    return f"{_script()}: out of memory{f' ({reason})' if reason else ''}; {smaller} needs less"


def _listing(error: ConfigError) -> str:
    number = len(error.mistakes)
    lines = [f"{number} mistake{'s' if number != 1 else ''} in the options:"]
    lines += [f"  {mistake}" for mistake in error.mistakes]
    return "\n".join([*lines, f"python {_script()} --help lists every option."])


def _script() -> str:
    return Path(sys.argv[0]).name or "newleaf"
