"""MODEL as a function of the user's own: ``package.module:factory``, ``path/file.py:factory``, ``file.py:make(cr=4)``.

The function is the user's code and is executed, with its folder importable, as if it were run there.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import keyword
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgecsi.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

_FOLDERS_UP = 4  # that are searched for a package an import misses
_SPEC = re.compile(r"(?P<place>.+?):(?P<name>[^\W\d]\w*)(?P<arguments>\(.*\))?", re.DOTALL)

_imported: dict[str, dict[str, ModuleType]] = {}
"""By folder, the user's modules that were imported from it. Two networks may each have a `utils`."""


def make(spec: str) -> tuple[str, nn.Module, tuple[Tensor, ...]]:
    """Call a factory.

    Args:
        spec: ``place:name`` or ``place:name(…)`` with literal arguments; the place is a module or a ``.py`` file.

    Returns:
        its name, the module, and the example inputs if it gave any.

    Raises:
        ModelError: it cannot be found, imported or called, or returns something else.
    """
    import torch

    found = _SPEC.fullmatch(spec)
    if found is None:
        raise ModelError(
            f"{spec!r} names no factory",
            "MODEL is path/file.py:factory or package.module:factory",
            "name one",
        )
    place, name = found["place"], found["name"]
    arguments, keywords = _literals(spec, found["arguments"] or "()")
    folder = Path(place).parent if place.endswith(".py") else Path.cwd()
    with _running_in(folder.resolve(), place):
        factory = _import(spec, place, name)
        try:
            made = factory(*arguments, **keywords)
        # the factory is the user's code: whatever it raises is reported as the model's fault, with its own words
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"{spec} failed", f"{type(error).__name__}: {error}", _advice(factory, place)
            ) from error
    module, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if isinstance(example, Mapping) and isinstance(module, torch.nn.Module):
        module, example = _by_position(module, [str(key) for key in example]), tuple(example.values())
    examples = tuple(example) if isinstance(example, list | tuple) else () if example is None else (example,)
    strangers = [type(x).__name__ for x in examples if not isinstance(x, torch.Tensor)]
    if not isinstance(module, torch.nn.Module) or strangers:
        known = isinstance(module, torch.nn.Module)
        raise ModelError(
            f"{spec} returned a {type(made).__name__}"
            + (f" with an example input that is no tensor but of type {strangers[0]}" if known else ""),
            "a factory returns a torch.nn.Module, (module, example_input), (module, (input, input, …)), or "
            "(module, {name: input})",
            "change what it returns",
        )
    odd = [x for x in examples if x.layout != torch.strided or x.is_meta or x.is_quantized or 0 in x.shape]
    if odd:
        raise ModelError(
            f"{spec}: an example input is of shape {list(odd[0].shape)}, {odd[0].layout}, on {odd[0].device}",
            "inputs of a library are dense numbers, at least one of them",
            "return a plain tensor, as torch.zeros gives it",
        )
    if any(x.is_complex() for x in examples):
        raise ModelError(
            f"{spec}: the example input is complex",
            "inputs of a library are real numbers",
            "take torch.view_as_real(x), and call torch.view_as_complex inside of the module",
        )
    return name, module, examples


def _by_position(module: nn.Module, names: list[str]) -> nn.Module:
    """The module, whose forward takes its inputs by position now: it gives them by name to the forward of old, or all in
    one dictionary if that has no such arguments. Its weights keep their names."""
    kind = type(module)
    wanted = inspect.signature(module.forward)
    if "forward" in vars(module):  # its own, chosen in __init__
        module._forward_by_name = vars(module).pop("forward")
    try:
        wanted.bind(**dict.fromkeys(names))
        as_keywords = True
    except TypeError:
        as_keywords = False

    def forward(self: nn.Module, *x: Tensor) -> Any:
        given = dict(zip(names, x, strict=True))
        of_old = vars(self).get("_forward_by_name") or functools.partial(kind.forward, self)
        return of_old(**given) if as_keywords else of_old(given)

    arguments = ["self"]
    for number, name in enumerate(names):
        plain = re.sub(r"\W+", "_", name).strip("_")
        free = plain.isidentifier() and not keyword.iskeyword(plain) and plain not in arguments
        arguments.append(plain if free else f"x_{number}")
    positions = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in arguments]
    forward.__signature__ = inspect.Signature(positions)  # type: ignore[attr-defined]
    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return module


def factories_in(path: Path) -> list[str]:
    """Names of the functions and classes of a file that may make a network; the file is read, not run.

    Raises:
        ModelError: there is no such file, or it is no Python.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} cannot be read", f"{type(error).__name__}: {error}", "MODEL is path/file.py:factory"
        ) from error
    kinds = (ast.FunctionDef, ast.ClassDef)  # a function is the likelier one
    return [
        node.name
        for kind in kinds
        for node in tree.body
        if isinstance(node, kind) and not node.name.startswith("_")
    ]


def _literals(spec: str, text: str) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of ``(4, name="x")``; nothing in them is executed."""
    try:
        call = ast.parse(f"f{text}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("there is more than one pair of parentheses")
        arguments = [ast.literal_eval(argument) for argument in call.args]
        keywords = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ModelError(
            f"{spec}: the arguments cannot be read",
            f"they may be numbers, texts, True, None, and lists of these ({error})",
            "for instance file.py:make(cr=4), in quotes for the shell",
        ) from error
    return arguments, keywords


def _advice(factory: Callable[..., object], place: str) -> str:
    """How a factory wants to be called."""
    name = getattr(factory, "__name__", "make")
    try:
        wanted = str(inspect.signature(factory))
    except (TypeError, ValueError):
        wanted = "()"
    if wanted.split("->")[0].strip() == "()":
        return "it takes no arguments; run it by itself to see where"
    return f"it is {name}{wanted}; arguments may be given: '{place}:{name}(…)'. Without them it takes no arguments"


def _import(spec: str, place: str, name: str) -> Callable[..., object]:
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except FileNotFoundError as error:
        raise ModelError(
            f"{place}: no such file", "MODEL is path/file.py:factory", "check the name"
        ) from error
    except SystemExit as error:
        raise ModelError(
            f"{place} leaves Python when it is imported",
            f"SystemExit: {error}; most likely it parses arguments (argparse) outside of functions",
            'put that below `if __name__ == "__main__":`',
        ) from error
    # importing runs the user's file: report what it raises as the model's fault
    except Exception as error:
        raise ModelError(
            f"{spec} cannot be imported",
            f"{type(error).__name__}: {error}",
            _import_advice(error, place, name),
        ) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ModelError(
            f"{place} has no function {name!r}", f"it has {', '.join(public) or 'none'}", "name one of these"
        )
    return factory  # type: ignore[no-any-return]


def _import_advice(error: Exception, place: str, name: str) -> str:
    folder = (Path(place).parent if place.endswith(".py") else Path.cwd()).resolve()
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = error.name.partition(".")[0]
        for above in folder.parents[:_FOLDERS_UP]:
            if (above / missing).is_dir() or (above / f"{missing}.py").is_file():
                return f"{missing} lies in {above}: set PYTHONPATH={above}"
        return f"install {missing}, or set PYTHONPATH to the folder that it lies in"
    if "relative import" in str(error) and place.endswith(".py"):
        top = folder
        while (top.parent / "__init__.py").is_file():
            top = top.parent
        module = ".".join((*folder.relative_to(top.parent).parts, Path(place).stem))
        return f"it is part of a package: PYTHONPATH={top.parent}, and give {module}:{name}"
    return "import it in Python to see where"


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(path)
    # a name of its own in sys.modules: dataclasses and pickling look there
    mark = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"edgecsi_user_{path.stem}_{mark}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


@contextmanager
def _running_in(folder: Path, program: str) -> Iterator[None]:
    """The folder first on ``sys.path``, its own modules instead of another folder's of the same names, and no
    arguments but the program's name: those of edgecsi are none of the user's."""
    own = _imported.setdefault(str(folder), {})
    for other in _imported.values():
        for name, module in other.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
    sys.modules |= own
    before, arguments, entry = set(sys.modules), sys.argv, str(folder)
    sys.path.insert(0, entry)
    sys.argv = [program]
    try:
        yield
    finally:
        sys.argv = arguments
        sys.path.remove(entry)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).is_relative_to(folder) and "site-packages" not in file:
                own[name] = sys.modules[name]
