"""The commands of README, quickstart, how-tos and troubleshooting, as they are written there.

`tests/test_docs.py` holds every one against the verbs and options that exist, and runs the cheap ones. To run them all,
which takes most of an hour, two pseudo-devices, a board that `python -m tests._arm64` makes, and the network for a
package or two:

    python -m tests.documented [PAGE...]

Each page is followed from its top in a folder of its own, by a shell, with stand-ins for what only a reader has: the
board, the network of one's own, the results of yesterday.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("quickstart", "troubleshooting", "choosing-compression", "compression")
    ),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
]


@dataclass(frozen=True)
class Command:
    """A command of a page; `inline` if it stands within a sentence, perhaps shortened."""

    page: Path
    line: int
    text: str
    inline: bool = False

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {self.text}"


def commands(page: Path) -> list[Command]:
    """Every command of a page, in order."""
    found: list[Command] = []
    block, held = "", ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("```"):
            block = "" if block else stripped[3:] or "text"
        elif block in ("sh", "sh long") and stripped and not stripped.startswith("#"):
            held += stripped.removesuffix("\\")
            if not stripped.endswith("\\"):
                found.append(Command(page, number, held))
                held = ""
        elif not block:
            found += [Command(page, number, text, True) for text in re.findall(r"`(edgecsi [^`]+)`", line)]
    return found


def parse(text: str, whole: bool = True) -> None:
    """Hold one call of edgecsi against the verbs and options that there are.

    Args:
        text: ``edgecsi build …``. whole: nothing is left out, so that what is required must be there.

    Raises:
        click.ClickException, edgecsi.errors.UsageError: there is no such verb or option, or a value is none.
    """
    from edgecsi.cli import Settings, cli

    words = shlex.split(text.replace("[", " ").replace("]", " ") if not whole else text, comments=True)[1:]
    context: click.Context = click.Context(cli, info_name="edgecsi", obj=Settings())
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        if words[0].startswith("-"):
            words = words[1:]
            continue
        name, inner, words = command.resolve_command(context, words)
        assert inner is not None
        command, context = inner, click.Context(inner, info_name=name, parent=context, obj=Settings())
    if isinstance(command, click.Group):
        return
    if not whole:
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {
            "--help",
            "-h",
        }
        if unknown := [
            word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known
        ]:
            raise click.NoSuchOption(unknown[0], ctx=context)
        return
    options, _, _ = command.make_parser(context).parse_args(list(words))
    for parameter in command.get_params(context):
        value = options.get(parameter.name or "")
        if parameter.required and not value:
            raise click.MissingParameter(ctx=context, param=parameter)
        if value is not None and not isinstance(parameter.type, click.Path) and parameter.name in options:
            with contextlib.suppress(AttributeError):  # a flag has no value
                parameter.type_cast_value(context, value)


STAND_INS = [
    (r"<this repository>", str(ROOT)),
    (r"ssh://pi@raspberrypi|ssh://pi@pi-[ab]", "ssh://board"),
    (r"\b(ssh-copy-id|ssh) pi@raspberrypi.*", "true"),
    (r"sudo apt-get install", "true"),
    (r"'Ada Lovelace <ada@example.org>'", "'Ada Lovelace <ada@example.org>'"),
    (r"--minutes \d+", "--minutes 0.1"),
    (r"(edgecsi tune .*--device ssh://\S+)(?!.*--minutes)", r"\1 --minutes 0.1"),
    (r"^edgecsi records merge pi-a", r"cp rpi4.jsonl pi-a.jsonl; cp rpi4.jsonl pi-b.jsonl; \g<0>"),
    (r"--sustained \d+[smh]", "--sustained 2s"),
    (r"umi:24000", "umi:300"),
    (r"~/.ssh/id_ed25519", "key"),
]
"""What a reader has and a test has not; and less of what takes long."""
NOT_HERE = re.compile(
    r"<family>|^source |tvm\.exec|tracker://|rpc://|zsh_source|pytest|find_package|pip install|^git clone|^make |"
    r"csinet-cr4_42|DATA_Htrainin|docker|ansible|raspi-config|deploy .* pi-\d|pkg-config|--write-target|my-pi\.toml"
)
"""Commands that need what no stand-in gives: a server, another shell, a package manager."""
SHOWN = re.compile(r"^`([\w.-]+)`\n\n```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""A file that a page shows under its name."""
FILES = {
    "my_net.py": """
import torch
from torch import nn

class MyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(2048, 64))
        self.decoder = nn.Sequential(nn.Linear(64, 2048), nn.Unflatten(1, (2, 32, 32)))

    def forward(self, x):
        return self.decoder(self.encoder(x))

def make():
    torch.manual_seed(0)
    return MyNet().eval(), torch.zeros(1, 2, 32, 32)
""",
    "prepare.py": """
import numpy as np
import torch
from edgecsi.channels.shipped import test_set
from my_net import make
np.save("data.npy", test_set(200))
np.savez("my-channels.npz", x=test_set(200))
torch.save(make()[0].state_dict(), "trained.pth")
""",
}


@contextlib.contextmanager
def reader() -> Iterator[dict[str, str]]:
    """An environment in which `edgecsi` is this one and the board is an SSH server on loopback, a Raspberry Pi's Debian
    run by QEMU; an error if that is missing."""
    from tests._arm64 import arm64, missing

    if lacking := missing():
        raise SystemExit(f"no board can be played: {lacking} is missing")
    with tempfile.TemporaryDirectory(prefix="reader-") as folder, arm64("cortex-a72") as board:
        program = Path(folder) / "edgecsi"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m edgecsi "$@"\n')
        program.chmod(0o755)
        yield os.environ | {
            "PATH": f"{folder}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "EDGECSI_SSH_CONFIG": str(board.config),
            "EDGECSI_DATA": f"{folder}/data",
            "COLUMNS": "80",
        }


def follow(page: Path, environment: dict[str, str]) -> list[str]:
    """Run a page's commands in order; returns those that failed, with what they said."""
    failed = []
    with tempfile.TemporaryDirectory(prefix="page-") as folder:
        here = Path(folder)
        shown = dict(SHOWN.findall(page.read_text(encoding="utf-8")))
        for name, text in (shown | FILES).items():
            (here / name).write_text(text)
        for setup in (
            ["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", "key"],
            [sys.executable, "prepare.py"],
        ):
            subprocess.run(setup, cwd=here, env=environment, check=True)
        for command in commands(page):
            if command.inline or NOT_HERE.search(command.text):
                continue
            text = command.text
            for pattern, instead in STAND_INS:
                text = re.sub(pattern, instead, text)
            if text.startswith("cd "):
                here /= text[3:]
                continue
            begin = time.monotonic()
            done = subprocess.run(
                ["bash", "-c", text], cwd=here, env=environment, capture_output=True, text=True
            )
            print(f"{time.monotonic() - begin:6.1f} s  {text}", flush=True)
            if done.returncode or "Traceback" in done.stderr:
                failed.append(f"{command}\n{done.returncode}: {done.stderr.strip()[-1500:]}")
                print(failed[-1], flush=True)
    return failed


def main() -> int:
    """Follow the pages that are named, or all."""
    named = [Path(word).resolve() for word in sys.argv[1:]]
    failed = []
    with reader() as environment:
        for page in named or PAGES:
            print(page.relative_to(ROOT), flush=True)
            failed += follow(page, environment)
    print("\n\n".join(failed) or "every command runs")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
