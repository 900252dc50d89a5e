"""The command line: one thin file per verb, loaded when the verb is used. A verb parses, calls and prints."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from edgecsi import disk
from edgecsi.errors import EdgecsiError, Notice, ToolchainError, UsageError
from edgecsi.names import nearest

# Every verb, its line in `edgecsi --help`, in the order of the work. The file is edgecsi/cli/<verb>.py.
VERBS = {
    "demo": "See the whole way once, in under two minutes.",
    "build": "Compile a model for a target: model -> bundle.",
    "run": "Run a bundle on an input.",
    "eval": "Measure how well a bundle reconstructs channels.",
    "bench": "Measure how fast a bundle is, alone or against others.",
    "report": "Make a page of results: one, or many beside each other.",
    "compare": "Say whether a result is better or worse than another.",
    "tune": "Measure which kernels are best on a device.",
    "records": "List, merge, export and prune what tuning measured.",
    "device": "Name, probe, set up and clean the devices bundles run on.",
    "compress": "Prune, quantise or factor a model by a recipe.",
    "train": "Train a zoo model.",
    "data": "Generate, convert and describe channels.",
    "sign": "Sign a bundle with an SSH key.",
    "deploy": "Copy a bundle to devices, prove it there and activate it.",
    "package": "Make a Debian package or an archive of a bundle.",
    "inspect": "Show what is in a bundle, without loading it.",
    "models": "List the zoo, or show one model.",
    "targets": "List, show and check what can be compiled for.",
    "recipes": "List the compression recipes, or show one.",
    "experiments": "Repeat the experiments of the source papers.",
    "doctor": "Find missing and broken parts, and what fixes them.",
    "help": "Show what a verb does and takes: edgecsi help build.",
}


@dataclass
class Settings:
    """What holds for the whole run of the program."""

    debug: bool = False
    quiet: bool = False
    verbose: bool = False


def _set(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        setattr(context.obj, str(parameter.name), True)


def _settings() -> list[click.Parameter]:
    """The options that hold for every verb."""
    described = {
        ("-q", "--quiet"): "Print results and errors only.",
        ("-v", "--verbose"): "Say each step, also where no terminal shows progress.",
        ("--debug",): "Show tracebacks of errors.",
    }
    return [
        click.Option(names, is_flag=True, expose_value=False, callback=_set, help=text)
        for names, text in described.items()
    ]


def _with_settings(command: click.Command) -> click.Command:
    """Let them stand after any verb, not only before it."""
    command.params += _settings()
    if isinstance(command, click.Group):
        for child in command.commands.values():
            _with_settings(child)
    return command


class _ReaderLeft(Exception):
    """Whoever read the output has had enough. Not the OSError itself: of that click makes an exit code of 1."""


class Verbs(click.Group):
    """A group that knows its commands by name and loads one only when it is called."""

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **settings)
        except BrokenPipeError as error:
            raise _ReaderLeft from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderLeft from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        if cmd_name not in self.commands:
            module = import_module(f"edgecsi.cli.{cmd_name}")
            self.add_command(_with_settings(module.command), cmd_name)
        return self.commands[cmd_name]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            near = nearest(args[0], VERBS)
            raise UsageError(
                f"there is no verb {args[0]!r}",
                f"did you mean {' or '.join(near)}?" if near else f"the verbs are {', '.join(VERBS)}",
                "see `edgecsi --help`",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: edgecsi build csinet-cr4 --target rpi4 -o csinet-pi && edgecsi inspect csinet-pi",
)
@click.version_option(package_name="edgecsi", message="edgecsi %(version)s")
def cli() -> None:
    """Compress, compile and ship CSI-feedback networks: PyTorch to a stand-alone library."""


cli.params += _settings()


def _verbs(_context: click.Context, _parameter: click.Parameter, word: str) -> list[str]:
    return [name for name in VERBS if name.startswith(word)]


@cli.command("help")
@click.argument("words", nargs=-1, metavar="[VERB]...", shell_complete=_verbs)
@click.pass_context
def show_help(context: click.Context, words: tuple[str, ...]) -> None:
    """Show what VERB does and takes.

    \b
    Example:
      edgecsi help build
      edgecsi help data generate
    """
    top = context.find_root()
    here, found = top, top.command
    for word in words:
        if not isinstance(found, click.Group):
            raise click.UsageError(f"{here.info_name} has no {word!r}", here)
        _, inner, _ = found.resolve_command(here, [word])
        assert inner is not None
        found = inner
        here = click.Context(found, info_name=word, parent=here, obj=top.obj)
    click.echo(found.get_help(here))


_with_settings(show_help)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program ``edgecsi``: run it on these arguments (the process's by default), return its exit code."""
    settings = Settings()
    # Hundreds of thousands of PyTorch's and TVM's objects stay: looking for garbage among them took an eighth of a build.
    gc.set_threshold(10_000, 10, 10)
    end_on_signals()
    with warnings.catch_warnings():
        warnings.simplefilter("always", Notice)
        warnings.showwarning = _say
        return _run(arguments, settings)


def _say(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """A notice is a line for the user; other warnings are other packages' affair, and shown as Python does."""
    from edgecsi.cli.output import note

    note(str(message), "note" if issubclass(category, Notice) else category.__name__)


def _run(arguments: Sequence[str] | None, settings: Settings) -> int:
    try:
        result: Any = cli.main(
            args=arguments, prog_name="edgecsi", standalone_mode=False, obj=settings, auto_envvar_prefix=None
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _explain(_usage(error), settings)
    except (click.Abort, KeyboardInterrupt) as interruption:
        said = (interruption.__cause__ or interruption).args  # click makes an Abort of Ctrl-C
        print(": ".join(["interrupted", *map(str, said)]), file=sys.stderr)
        return 130
    except (BrokenPipeError, _ReaderLeft):
        _let_go_of_stdout()
        return 141
    except EdgecsiError as error:
        return _explain(error, settings)
    except (OSError, MemoryError) as error:
        if (known := _environment(error)) is not None:
            known.__cause__ = error
            return _explain(known, settings)
        return _report_bug(error)
    except Exception as error:
        return _report_bug(error)


def _let_go_of_stdout() -> None:
    """What is left in its buffer goes nowhere: Python would complain once more when it closes stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_on_signals() -> None:
    """SIGTERM and SIGHUP end the program as Ctrl-C does: everything that is temporary is removed first."""

    def end(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough
        sys.exit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, end)


def _usage(error: click.ClickException) -> UsageError:
    """Click's own errors in our three lines."""
    context = getattr(error, "ctx", None)
    if context is None:
        return UsageError(
            error.format_message(), "the command line cannot be understood", "see `edgecsi --help`"
        )
    usage = " ".join(context.get_usage().split())
    return UsageError(error.format_message(), usage, f"see `{context.command_path} --help`")


def _explain(error: EdgecsiError, settings: Settings) -> int:
    if settings.debug:
        traceback.print_exception(error)
    from edgecsi.cli.output import folded

    print(folded(f"error: {error}", sys.stderr), file=sys.stderr)
    return error.exit_code


def _report_bug(error: Exception) -> int:
    traceback.print_exception(error)
    print(
        f"error: this is a bug in edgecsi: {type(error).__name__}: {error}\n"
        "it met something nobody thought of; the traceback above says where\n"
        "please report it with the command line and the output of `edgecsi doctor`",
        file=sys.stderr,
    )
    return 1


def _environment(error: OSError | MemoryError) -> EdgecsiError | None:
    """What the operating system refused, as an error of the user's environment; None for anything else."""
    if isinstance(error, MemoryError):
        return ToolchainError("out of memory", str(error) or "the system gives no more", "free some memory")
    more = {errno.EMFILE: "raise the limit of open files (ulimit -n)", errno.ENOMEM: "free some memory"}
    if error.errno in more:
        return ToolchainError(f"the system refused: {error.strerror}", "it has no more", more[error.errno])
    where = error.filename2 or error.filename
    if where is None and error.errno in disk.FULL:
        _let_go_of_stdout()
        return disk.refusal(error, Path("standard output"), "free some space, or send the output elsewhere")
    if error.errno not in disk.KNOWN or where is None:
        return None
    return disk.refusal(
        error, Path(os.fsdecode(where)), "check the path, or write somewhere else", "cannot be used"
    )
