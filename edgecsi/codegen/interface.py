"""What a bundle shows to its users: the C header and the examples, rendered from its manifest."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from edgecsi import verdict
from edgecsi.bundle.manifest import Entry, Manifest, Tensor

if TYPE_CHECKING:
    import jinja2

# Keywords of C and C++, which a parameter cannot be called, and the parameters the functions add themselves.
_RESERVED = re.compile(
    "alignas|alignof|and|asm|auto|bool|break|case|catch|char|class|const|continue|default|delete|do|"
    "double|else|enum|explicit|export|extern|false|float|for|friend|goto|if|inline|int|long|mutable|"
    "namespace|new|not|nullptr|operator|or|private|protected|public|register|restrict|return|short|"
    "signed|sizeof|static|struct|switch|template|this|throw|true|try|typedef|typename|union|unsigned|"
    "using|virtual|void|volatile|while|xor|workspace|nanoseconds"
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


def parameter(tensor: Tensor) -> str:
    """A tensor's name as a parameter of a C function."""
    return f"{tensor.name}_" if _RESERVED.fullmatch(tensor.name) else tensor.name


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
    inputs, outputs = ([_tensor(tensor) for tensor in group] for group in (entry.inputs, entry.outputs))
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


def _tensor(tensor: Tensor) -> dict[str, Any]:
    # A prefix keeps the example's variables apart from its functions.
    return {
        "name": tensor.name,
        "parameter": parameter(tensor),
        "local": f"x_{tensor.name}",
        "type": C_TYPES[tensor.dtype],
        "dtype": tensor.dtype,
        "code": {"float32": "'<f4'", "int32": "'<i4'"}[tensor.dtype],
        "size": tensor.size,
        "shape": tensor.shape,
    }


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
