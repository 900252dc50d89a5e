"""What a bundle shows to its users: the C header and the examples, rendered from its manifest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from edgecsi import verdict
from edgecsi.bundle.manifest import Entry, Manifest, Tensor

if TYPE_CHECKING:
    import jinja2

# Keywords of C and C++ and macros of their headers, which a parameter cannot be called, and the parameters the functions
# add themselves.
_RESERVED = re.compile(
    "alignas|alignof|and|and_eq|asm|auto|bitand|bitor|bool|break|case|catch|char|char(8|16|32)_t|class|co_await|co_return|"
    "co_yield|compl|concept|const|const_cast|consteval|constexpr|constinit|continue|decltype|default|delete|do|double|"
    "dynamic_cast|else|enum|explicit|export|extern|false|float|for|friend|goto|if|inline|int|long|mutable|namespace|new|"
    "noexcept|not|not_eq|nullptr|operator|or|or_eq|private|protected|public|register|reinterpret_cast|requires|restrict|"
    "return|short|signed|sizeof|static|static_assert|static_cast|struct|switch|template|this|thread_local|throw|true|try|"
    "typedef|typeid|typename|typeof|typeof_unqual|union|unsigned|using|virtual|void|volatile|wchar_t|while|xor|xor_eq|"
    "EOF|I|INFINITY|NAN|NULL|complex|errno|imaginary|linux|stderr|stdin|stdout|unix|workspace|nanoseconds"
)


C_TYPES = {"float32": "float", "int32": "int32_t"}


def render_header(manifest: Manifest) -> bytes:
    """``<name>.h``, the documented C interface of a library."""
    return _render("header.h", manifest)


def render_example(manifest: Manifest) -> dict[str, bytes]:
    """The files of ``example/``, by their names inside the bundle: C and Python programs that run
    ``golden.npz`` through the library, and a CMake project for the former. They accept what a deployment does, by the
    manifest's check."""
    return {f"example/{name}": _render(name, manifest) for name in ("main.c", "CMakeLists.txt", "run.py")}


def _render(name: str, manifest: Manifest) -> bytes:
    text = (
        environment()
        .get_template(f"{name}.j2")
        .render(
            name=manifest.name,
            cname=manifest.cname,
            NAME=manifest.cname.upper(),
            entries=[_entry(key, entry, manifest) for key, entry in sorted(manifest.entries.items())],
            target=f"{manifest.target.id} ({manifest.target.mcpu})",
            model=manifest.model.spec,
            version=manifest.created_with.edgecsi,
        )
    )
    return text.encode()


def _entry(name: str, entry: Entry, manifest: Manifest) -> dict[str, Any]:
    checked = manifest.check.entries.get(name)
    names = [tensor.name for tensor in (*entry.inputs, *entry.outputs)]
    inputs, outputs = (
        [_tensor(tensor, names) for tensor in group] for group in (entry.inputs, entry.outputs)
    )
    parameters = [f"const {tensor['type']} *{tensor['parameter']}" for tensor in inputs]
    parameters += [f"{tensor['type']} *{tensor['parameter']}" for tensor in outputs]
    return {
        "name": name,
        "inputs": inputs,
        "outputs": outputs,
        "workspace": entry.workspace,
        "layers": entry.layers,
        "macs": entry.macs,
        "tolerance": f"{verdict.elsewhere(checked.allowed if checked else None, entry.quantised):g}",
        "parameters": ", ".join(parameters),
        "sample_arguments": ", ".join(f"{t['local']} + s * {t['size']}" for t in [*inputs, *outputs]),
    }


def _tensor(tensor: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """A tensor of an entry whose tensors have these names; h and H may be two."""
    name, macro = tensor.name, tensor.name.upper()
    alone = sum(other.upper() == macro for other in names) == 1
    # A prefix keeps the example's variables apart from its functions.
    return {
        "name": name,
        "macro": macro if alone else name,
        "parameter": _free(f"{name}_", names) if _RESERVED.fullmatch(name) else name,
        "local": f"x_{name}",
        "golden": f"x_{_free(f'{name}_golden', names)}",
        "type": C_TYPES[tensor.dtype],
        "dtype": tensor.dtype,
        "code": {"float32": "'<f4'", "int32": "'<i4'"}[tensor.dtype],
        "size": tensor.size,
        "shape": tensor.shape,
    }


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_"
    return name


@cache
def environment() -> jinja2.Environment:
    """The templates of this folder."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("edgecsi.codegen"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["comment"] = _comment
    return made


def _comment(text: str) -> str:
    """Foreign text made safe inside a C comment."""
    return "".join(c if c.isprintable() else "?" for c in text).replace("*/", "* /").replace("/*", "/ *")
