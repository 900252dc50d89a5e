"""The public Python API: its names, its examples, and that its errors speak Python."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import edgecsi
from edgecsi import api
from edgecsi.cli import cli
from edgecsi.errors import EdgecsiError, UsageError

DOCS = Path(__file__).parents[1] / "docs" / "api.md"
PUBLIC = [
    "__version__", "bench", "build", "compress", "deploy", "evaluate", "load", "models", "report", "targets", "train",
    "tune",
]  # fmt: skip
SHOWN = {"json", "quiet", "verbose", "debug"}
ELSEWHERE = {
    "build": {"output", "batch", "explain", "measure", "no_records"},  # out=, batches=, records=None
    "compress": {"output", "sensitivity"},
    "train": {"output"},
    "eval": set(),
    "bench": {
        "deadline", "rate", "sustained", "meter", "cpu", "cross_check", "self_check", "save", "repeat", "plot", "limits",
    },
    "deploy": {"require_signature", "parallel", "max_failures"},  # allowed_signers=; one device a call
    "tune": {"batch", "report"},  # batches=
    "report": {"output", "markdown", "csv"},
}  # fmt: skip
"""Options that are no arguments: called otherwise, or left to the command line. A new option is one, or stands here."""


def test_the_public_names_are_these() -> None:
    assert sorted(edgecsi.__all__) == PUBLIC
    for name in PUBLIC[1:]:
        assert callable(getattr(edgecsi, name))
        assert f"edgecsi.{name}(" in DOCS.read_text()
        function = getattr(api, name)
        assert function.__doc__
        hints = inspect.signature(function)
        assert hints.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not inspect.Parameter.empty for p in hints.parameters.values())


def test_importing_edgecsi_is_cheap() -> None:
    program = (
        "import sys, edgecsi; edgecsi.errors.InputError; edgecsi.build; edgecsi.compress; edgecsi.load; "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "tvm", "click", "scipy"} & set(done.stdout.split())


@pytest.mark.parametrize("name", ["bench", "compress", "deploy", "evaluate", "models", "report", "tune"])
def test_packages_of_the_same_name_stay_packages(name: str) -> None:
    program = (
        f"import edgecsi, edgecsi.{name} as package; from edgecsi import {name}; from types import ModuleType\n"
        f"assert package is {name} is edgecsi.{name}; assert isinstance(package, ModuleType); assert callable(package)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where `local` keeps what is deployed
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    assert len(blocks) >= 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), names)


def test_the_long_examples_call_what_there_is() -> None:
    """Training and tuning take minutes, a board is not at hand; here their arguments must exist."""
    calls = [
        node
        for block in re.findall(r"```python long\n(.*?)```", DOCS.read_text(), re.S)
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("edgecsi.")
    ]
    assert len(calls) >= 5
    for call in calls:
        function = getattr(api, ast.unparse(call.func).removeprefix("edgecsi."))
        named = {key.arg: ast.literal_eval(key.value) for key in call.keywords if key.arg}
        inspect.signature(function).bind(*map(ast.literal_eval, call.args), **named)


@pytest.mark.parametrize("verb", ["build", "compress", "train", "eval", "bench", "deploy", "tune", "report"])
def test_what_a_verb_takes_its_function_takes(verb: str) -> None:
    """An option is an argument of the same name, but for those that only say how results are shown."""
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    taken = inspect.signature(getattr(api, {"eval": "evaluate"}.get(verb, verb))).parameters
    names = {
        max(option.opts, key=len).removeprefix("--").replace("-", "_")
        for option in command.params
        if isinstance(option, click.Option)
    }
    assert names - set(taken) == SHOWN | ELSEWHERE[verb]


def test_outputs_are_chosen_from_python(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "class Two(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return {'y': x + 1, 'energy': (x * x).sum(1)}\n"
        "def make():\n"
        "    return Two(), torch.zeros(1, 8)\n"
    )
    built = edgecsi.build(f"{tmp_path}/net.py:make", "host", keep_output="energy", dry_run=True)
    assert [tensor.name for tensor in built.manifest.entries["full"].outputs] == ["energy"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: edgecsi.build("fullycon", "host", name="---", dry_run=True), "name="),
        (lambda p: edgecsi.build("fullycon", "host", out=p), "out="),
        (lambda p: edgecsi.build("fullycon", "host", entry="middle"), "full"),
    ],
)
def test_errors_name_arguments_not_options(tmp_path: Path, call, words: str) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(EdgecsiError) as caught:
        call(tmp_path)
    text = str(caught.value)
    assert words in text
    assert not re.search(r"(^|\s)--?[a-z]", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "name the checkpoint with --weights, or build again",
            "name the checkpoint with weights=, or build again",
        ),
        ("pass --name with a name", "pass name= with a name"),
        ("choose another folder with -o, or", "choose another folder with out=, or"),
        ("choose another --dump-ir", "choose another dump_ir="),
        ("pass --model my.py:net", "pass model= my.py:net"),
        ("see `edgecsi bench --help`", "see `edgecsi bench --help`"),
        ("a bare-metal thing -- really", "a bare-metal thing -- really"),
    ],
)
def test_options_become_arguments(text: str, expected: str) -> None:
    assert api._words(text) == expected


def test_numbers_are_refused_as_the_options_of_the_same_names_are() -> None:
    for verb, function in {"bench": "bench", "eval": "evaluate", "build": "build", "tune": "tune", "deploy": "deploy",
                           "train": "train", "compress": "compress"}.items():  # fmt: skip
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None
        taken = inspect.signature(getattr(api, function)).parameters
        needed = [
            name for name, p in taken.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        for option in command.params:
            least = getattr(option.type, "min", None)
            name = option.name or ""
            if least is None or name not in taken:
                continue
            wrong = least - 0.001 if isinstance(least, float) else least - 1
            given = [wrong] if name == "batches" else wrong
            if getattr(option.type, "min_open", False):
                continue
            with pytest.raises(UsageError, match=f"{name}="):
                getattr(edgecsi, function)(**dict.fromkeys(needed, "nothing"), **{name: given})


def test_commands_in_errors_stay_commands(tmp_path: Path) -> None:
    with pytest.raises(EdgecsiError) as caught:
        edgecsi.report(tmp_path / "no.json")
    assert "edgecsi bench --json" in str(caught.value)
    assert api._words("choose one with --device, or name one: edgecsi device add") == (
        "choose one with device=, or name one: edgecsi device add"
    )
