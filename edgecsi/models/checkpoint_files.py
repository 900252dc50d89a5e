"""What is in a file of weights: ``.safetensors``, ``.pth``, ``.pt``, ``.ckpt``, shards with an index.

Nothing in a file is executed (``weights_only=True``, plus a few plain types that people keep beside their weights), and
no size in it is believed before it is compared with the file.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecsi import file_kinds
from edgecsi.errors import ModelError, shown
from edgecsi.models import sparse_tensors

if TYPE_CHECKING:
    import torch

State = dict[str, "torch.Tensor"]

_MAX_HEADER = 16 << 20
_MAX_SHARDS = 1000
_MAX_LISTED = 500  # more than any network of the zoo has; a hostile file may have millions
_MAX_DEPTH = 3  # {'model': {'encoder': {'state_dict': {…}}}}
_PREFERRED = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module")
"""Names under which the weights themselves are kept, the likeliest first."""
_BOOKKEEPING = ("total_ops", "total_params", "n_averaged")  # of the thop profiler and of AveragedModel
_AVERAGES = ("ema_model", "online_model")  # parts of one dictionary, by EMA packages


@dataclass(frozen=True)
class Candidate:
    """Tensors of a file that may be a network's, by name; ``name`` says where in the file they are kept."""

    name: str
    state: State


def read_candidates(path: Path, most: int | None = None) -> tuple[list[Candidate], dict[str, str]]:
    """Everything in a file that may be the weights of a network, the likeliest first, and the metadata of a
    ``.safetensors`` file.

    Args:
        most: numbers that the network holds; a packed file that claims more is refused before memory is taken.

    Raises:
        ModelError: not a checkpoint, damaged, or hostile.
    """
    if not path.is_file():
        raise ModelError(file_kinds.missing(path), "a checkpoint is expected here", "check the name")
    metadata: dict[str, str] = {}
    if path.name.endswith(".index.json"):
        found = [Candidate("", _read_shards(path, most))]
    elif path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path, most)
        found = [Candidate("", state)]
    else:
        content = _read_torch(path)
        found = list(_search(content, ""))
        if not found:
            raise _no_tensors(path, content)
    parts = [
        Candidate(part, inner)
        for candidate in found
        for part in _AVERAGES
        if (inner := _below(candidate.state, part))
    ]
    clean = [Candidate(one.name, _without_bookkeeping(one.state)) for one in [*found, *parts]]
    clean = [one for one in clean if one.state]
    if not clean:
        raise ModelError(f"{path} holds no weights", "its dictionary of tensors is empty", "export it again")
    return clean, metadata


def read_state(path: Path, most: int | None = None) -> tuple[State, dict[str, str]]:
    """The likeliest of :func:`read_candidates`, and the metadata."""
    candidates, metadata = read_candidates(path, most)
    return candidates[0].state, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a ``.safetensors`` file, without reading its tensors.

    Raises:
        ModelError: the header is damaged or does not match the file.
    """
    if not path.is_file():
        raise ModelError(file_kinds.missing(path), "a .safetensors file is expected here", "check the name")
    header = _safetensors_header(path)
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict):
        raise damaged(path, "its metadata is no table")
    return {str(key): str(value) for key, value in metadata.items()}


def listed(names: list[str]) -> str:
    """Names in a row, of very many only the first."""
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more:,} more" if more > 0 else "")


def damaged(path: Path, why: str) -> ModelError:
    """The error for a file that is not what its name says; it names what the file is, if that can be told."""
    kind = file_kinds.describe(path)
    return ModelError(
        f"{path} is damaged, or no file of weights",
        " ".join(why.split())[:300] + (f"; it looks like {kind}" if kind else ""),
        "copy or export it again",
    )


def _search(content: Any, name: str, depth: int = 0) -> Iterator[Candidate]:
    """Every dictionary of tensors, and neighbours (encoder, decoder) put together under their names."""
    if not isinstance(content, Mapping) or depth > _MAX_DEPTH:
        return
    own = _tensors(content)
    if own:
        yield Candidate(name, own)
    below: dict[str, list[Candidate]] = {}
    for key in sorted((key for key in content if isinstance(key, str)), key=_rank):
        if isinstance(content[key], Mapping) and "optim" not in key:
            below[key] = list(_search(content[key], f"{name}.{key}" if name else key, depth + 1))
            yield from below[key]
    parts = {key: found[0].state for key, found in below.items() if found}
    if len(parts) > 1:
        joined = {f"{key}.{inner}": value for key, state in parts.items() for inner, value in state.items()}
        yield Candidate("+".join(parts), joined)


def _rank(key: str) -> tuple[bool, int]:
    """Weights before their moving average, likely names before others."""
    return "ema" in key.lower() or "average" in key.lower(), (
        _PREFERRED.index(key) if key in _PREFERRED else len(_PREFERRED)
    )


def _tensors(content: Mapping[Any, Any]) -> State:
    import numpy as np
    import torch

    found: State = {}
    for key, value in content.items():
        if isinstance(key, str):
            if isinstance(value, torch.Tensor):
                found[key] = value
            elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
                found[key] = torch.from_numpy(np.ascontiguousarray(value))
    return found


def _without_bookkeeping(state: State) -> State:
    return {key: value for key, value in state.items() if key.rsplit(".", 1)[-1] not in _BOOKKEEPING}


def _below(state: State, part: str) -> State:
    return {key[len(part) + 1 :]: value for key, value in state.items() if key.startswith(f"{part}.")}


def _no_tensors(path: Path, content: Any) -> ModelError:
    if not isinstance(content, Mapping):
        return ModelError(
            f"{path} holds a {type(content).__name__}",
            "expected a dictionary of tensors",
            "save model.state_dict()",
        )
    for _ in range(_MAX_DEPTH):
        inner = next((content[key] for key in _PREFERRED if isinstance(content.get(key), Mapping)), None)
        content = content if inner is None else inner
    if not content:
        return ModelError(f"{path} holds no weights", "its dictionary of tensors is empty", "export it again")
    return ModelError(
        f"{path} is no dictionary of tensors",
        f"not tensors: {listed([str(key) for key in content])}",
        "save model.state_dict() and give that file",
    )


def _read_safetensors(path: Path, most: int | None) -> tuple[State, dict[str, str]]:
    from safetensors.torch import load_file

    metadata = read_metadata(path)
    try:
        return sparse_tensors.unpack(load_file(path), metadata, most), metadata
    # the reader is another project's and the file a stranger's: whatever it raises, the file is bad
    except Exception as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def shards(path: Path) -> list[Path]:
    """The files that an index of shards names, which lie beside it; of any other file that file alone.

    Raises:
        ModelError: the index is damaged, or a shard is missing.
    """
    if not path.name.endswith(".index.json"):
        return [path]
    try:
        with path.open("rb") as file:
            names = sorted(set(json.loads(file.read(_MAX_HEADER))["weight_map"].values()))
        if not 1 <= len(names) <= _MAX_SHARDS or not all(re.fullmatch(r"[\w.+-]+", name) for name in names):
            raise ValueError("its files must lie beside it")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(path, f"it is no index of shards: {type(error).__name__}: {error}") from error
    for name in names:
        if not path.with_name(name).is_file():
            raise ModelError(
                f"{path} names {name}", "that file is missing", "copy all shards beside the index"
            )
    return [path.with_name(name) for name in names]


def _read_shards(path: Path, most: int | None) -> State:
    state: State = {}
    for shard in shards(path):
        state |= read_state(shard, most)[0]
    return state


def _safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON header, with every stated size compared to the file's."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise damaged(path, f"its header claims {length:,} bytes of {size:,}")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is no table")
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        try:
            begin, end = tensor["data_offsets"]
            inside = 0 <= begin <= end <= size - 8 - length
        except (TypeError, KeyError, ValueError) as error:
            raise damaged(path, f"the entry of {shown(name)} has no offsets") from error
        if not inside:
            raise damaged(path, f"{shown(name)} claims bytes {begin} to {end} outside the file")
    return header


def _read_torch(path: Path) -> Any:
    import torch

    _check_archive(path)
    try:
        # an old or odd pickle is not worth a warning
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_plain_types()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _refusal(path, error) from error


def _plain_types() -> list[Any]:
    """Types that people keep beside their weights and that run nothing when they are made."""
    import numpy as np
    from numpy._core.multiarray import _reconstruct, scalar

    class Settings(dict):  # type: ignore[type-arg]  # Lightning's hyperparameters
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__()

    attributes = [
        (Settings, f"{package}.AttributeDict")
        for package in ("pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing",
                        "lightning_fabric.utilities.data", "lightning.fabric.utilities.data")
    ]  # fmt: skip
    old_names = [
        (_reconstruct, "numpy.core.multiarray._reconstruct"),
        (scalar, "numpy.core.multiarray.scalar"),
    ]
    numbers = [getattr(np.dtypes, name) for name in np.dtypes.__all__ if name != "ObjectDType"]
    return [argparse.Namespace, np.ndarray, np.dtype, _reconstruct, scalar, *old_names, *numbers, *attributes]


def _refusal(path: Path, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())
    unsafe = re.search(r"GLOBAL ([\w.]+)", reason)
    if unsafe is not None:
        if _holds_modules(path):
            return ModelError(
                f"{path} cannot be loaded: it is a whole module, not only its weights",
                f"torch.save(model) stores code by name ({unsafe[1]}), and loading it runs that code",
                "in the program that wrote it: torch.save(model.state_dict(), FILE), and give that file",
            )
        why = f"it wants to run {unsafe[1]}, not only to load tensors"
    else:
        kind = file_kinds.describe(path)
        known = kind is not None and not kind.startswith(("a file of torch", "a Python pickle"))
        why = f"it is {kind}" if known else reason[:200]
    return ModelError(
        f"{path} cannot be loaded",
        f"{why} ({type(error).__name__})",
        "it is damaged or not a plain checkpoint: save model.state_dict() and give that file",
    )


def _holds_modules(path: Path) -> bool:
    """Whether a file of torch.save holds modules themselves; their dictionaries have names. Nothing is executed."""
    try:
        if _is_archive(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(name) as file:
                    data = file.read(_MAX_HEADER)
        else:
            with path.open("rb") as plain:
                data = plain.read(_MAX_HEADER)
    except (OSError, ValueError, StopIteration, NotImplementedError, zipfile.BadZipFile):
        return False
    return all(word in data for word in (b"_parameters", b"_buffers", b"_modules"))


def _is_archive(path: Path) -> bool:
    """Whether a file ends as a zip archive does; one of several disks raises before it says so."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def _check_archive(path: Path) -> None:
    """Refuse programs and zip bombs before torch opens the file."""
    kind = file_kinds.describe(path) or ""
    program = kind.startswith(("an exported program", "a TorchScript"))
    if path.suffix == ".pt2" or program:
        raise ModelError(
            f"{path} is {kind if program else 'an exported program'}, not a checkpoint",
            "loading one can run code that it brings",
            "save model.state_dict() and give that file",
        )
    if not _is_archive(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise damaged(path, str(error)) from error
    # torch.save stores without compression, so the parts can never be larger than the whole
    total, size = sum(member.file_size for member in members), path.stat().st_size
    if total > size:
        raise damaged(path, f"its parts claim {total:,} bytes in a file of {size:,} (a zip bomb?)")
