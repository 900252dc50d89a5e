"""What a maintainer needs to find out why a model does not build, in one archive; the weights stay out of it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import platform
import traceback
import zipfile
from pathlib import Path

from edgecsi import disk, pipeline
from edgecsi.doctor import Finding
from edgecsi.errors import EdgecsiError

PACKAGES = ("edgecsi", "torch", "apache-tvm", "apache-tvm-ffi", "numpy", "ziglang")


def pack(options: pipeline.BuildOptions, findings: list[Finding], out: Path) -> str:
    """Build as `options` say, into nowhere, and write what was seen to a zip file.

    In it: ``error.txt`` (the three lines and the traceback), ``export-ENTRY.txt`` (the graph of torch.export, with the
    lines of the user's file that its operators come from), ``ir/`` (the network after every pass), ``machine.txt``.

    Returns:
        What became of the build, in one line.

    Raises:
        EdgecsiError: the archive cannot be written.
    """
    files = {"machine.txt": _machine(findings)}
    with disk.scratch(runs=True) as folder:
        try:
            built = dataclasses.replace(options, out=folder / "bundle", dump_ir=folder / "ir")
            pipeline.build(built)
            became = "it builds, and answers what PyTorch answers"
        except Exception as error:
            became = error.what if isinstance(error, EdgecsiError) else f"{type(error).__name__}: {error}"
            files["error.txt"] = f"{error}\n\n{''.join(traceback.format_exception(error))}"
        files |= _exported(options)
        for path in sorted((folder / "ir").rglob("*.txt")):
            files[str(path.relative_to(folder))] = path.read_text("utf-8")
    asked = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    given = {name: value for name, value in asked.items() if value not in (None, (), False)}
    files["build.txt"] = "\n".join([*(f"{name}: {value}" for name, value in given.items()), became, ""])
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(files.items()):
            archive.writestr(name, text)
    disk.write(out, held.getvalue(), "choose another file with -o")
    return became


def _machine(findings: list[Finding]) -> str:
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} is not installed")
    lines = [f"{f.part}: {f.status}: {f.detail}" for f in findings]
    return "\n".join([platform.platform(), f"Python {platform.python_version()}", *versions, "", *lines, ""])


def _exported(options: pipeline.BuildOptions) -> dict[str, str]:
    """The graph of each entry as torch.export sees it: operators, shapes, lines of source; or why there is none."""
    import torch

    from edgecsi.models.load import load_model

    try:
        model = load_model(options.model, options.weights, options.input_shape, allow_random=True)
    except Exception:  # as error.txt says
        return {}
    found = {}
    for name, entry in model.entries.items():
        try:
            with torch.no_grad():
                found[f"export-{name}.txt"] = str(torch.export.export(entry.module, entry.inputs))
        except Exception as error:
            found[f"export-{name}.txt"] = "".join(traceback.format_exception(error))
    return found
