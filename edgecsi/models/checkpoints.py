"""Weights from files that anyone may have written: ``.safetensors``, ``.pth``, ``.pth.tar``, ``.pt``.

Nothing in a file is executed (``weights_only=True``), and no size in it is believed before it is compared
with the file and with the network. Known layouts of other projects are renamed to ours.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecsi.errors import ModelError
from edgecsi.models import sparse_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

State = dict[str, "torch.Tensor"]

_MAX_HEADER = 16 << 20
_MAX_LISTED = 500  # more than any network of the zoo has; a hostile file may have millions
_PROFILER = ("total_ops", "total_params")  # buffers that the thop profiler leaves behind
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "params")

_CRBLOCKS = (
    (r"^decoder_feature\.conv5x5_bn\.", "decoder.conv5x5."),
    (r"^decoder_feature\.CRBlock1\.", "decoder.blocks.0."),
    (r"^decoder_feature\.CRBlock2\.", "decoder.blocks.1."),
    (r"^(decoder\.blocks\.\d)\.path1\.", r"\1.wide."),
    (r"^(decoder\.blocks\.\d)\.path2\.", r"\1.narrow."),
    (r"^(decoder\.blocks\.\d)\.conv1x1\.", r"\1.merge."),
    (r"^encoder_conv\.conv1x1_bn\.", "encoder.merge.conv1x1."),
    (r"^(encoder_fc|replace_efc)\.", "encoder.fc."),
    (r"^(decoder_fc|replace_dfc)\.", "decoder.fc."),
)
_PUBLISHED: dict[str, tuple[tuple[str, str], ...]] = {
    "crnet": (
        (r"^encoder1\.(conv\dx\d)_bn\.", r"encoder.wide.\1."),
        (r"^encoder2\.", "encoder.narrow."),
        *_CRBLOCKS,
    ),
    "clnet": (
        (r"^encoder1\.(conv\dx\d)_bn\.", r"encoder.spatial.\1."),
        (r"^sa\.spatial\.", "encoder.spatial.gate.conv3x3."),
        (r"^encoder2\.", "encoder.fusion.conv1x1."),
        (r"^se\.fc\.0\.", "encoder.fusion.weight.squeeze."),
        (r"^se\.fc\.2\.", "encoder.fusion.weight.excite."),
        *_CRBLOCKS,
    ),
}
"""How the authors of a family call their tensors: pattern → our name, applied in turn."""


def load_weights(module: nn.Module, files: Sequence[Path], *, family: str | None = None) -> dict[str, str]:
    """Put the weights of one checkpoint, or of an encoder's and a decoder's file, into a network.

    Args:
        module: network of the right structure; changed only if everything fits.
        files: one file, or two for a network split into encoder and decoder.
        family: zoo family, to recognise its published layout.

    Returns:
        the metadata of a ``.safetensors`` file, else empty.

    Raises:
        ModelError: the file is damaged, hostile, of another kind, or its tensors do not fit; every missing
            and unexpected tensor is named.
    """
    states: list[State] = []
    metadata: dict[str, str] = {}
    for path in files:
        state, found = read_state(path)
        states.append(state)
        metadata |= found
    label = ", ".join(map(str, files))
    state = _combine(states, set(module.state_dict()), family, label)
    _fit(module, state, label)
    return metadata


def write_weights(path: Path, state: State, metadata: Mapping[str, str]) -> None:
    """Write a ``.safetensors`` file; the same tensors and metadata always give the same bytes. Pruned matrices are
    packed, see :mod:`edgecsi.models.sparse_tensors`.

    Args:
        path: where to; its folder exists. An unfinished file may be left if this is interrupted, so give a
            temporary name and rename.
        state: tensors by name.
        metadata: at least ``model``, and ``config`` as JSON, so that the file can be given as MODEL. What an
            earlier file says of its packed matrices is left out.
    """
    from safetensors.torch import save

    packed, shapes = sparse_tensors.pack(state)
    kept = {key: value for key, value in metadata.items() if key != sparse_tensors.KEY}
    content = save({key: value.contiguous() for key, value in packed.items()}, metadata=kept | shapes)
    # safetensors writes the metadata in random order: sort the header, and pad it to 8 bytes as it was
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])


def sha256(files: Sequence[Path]) -> str:
    """Hex digest over the contents of the files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_state(path: Path) -> tuple[State, dict[str, str]]:
    """The tensors of a checkpoint by name, profiler left-overs and ``module.`` prefixes removed, and the
    metadata of a ``.safetensors`` file.

    Raises:
        ModelError: not a checkpoint, damaged, or hostile.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file", "a checkpoint is expected here", "check the name")
    if path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path)
    else:
        state, metadata = _read_torch(path), {}
    clean: State = {}
    for key, value in state.items():
        if key.rsplit(".", 1)[-1] in _PROFILER:
            continue
        clean[re.sub(r"^(module\.)+", "", key)] = value
    if not clean:
        raise ModelError(f"{path} holds no weights", "its dictionary of tensors is empty", "export it again")
    return clean, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a ``.safetensors`` file, without reading its tensors.

    Raises:
        ModelError: the header is damaged or does not match the file.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file", "a .safetensors file is expected here", "check the name")
    header = _safetensors_header(path)
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _damaged(path, "its metadata is no table")
    return {str(key): str(value) for key, value in metadata.items()}


def _read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    from safetensors.torch import load_file

    metadata = read_metadata(path)
    try:
        return sparse_tensors.unpack(load_file(path), metadata), metadata
    # the reader is another project's and the file a stranger's: whatever it raises, the file is bad
    except Exception as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON header, with every stated size compared to the file's."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise _damaged(path, f"its header claims {length:,} bytes of {size:,}")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no table")
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        try:
            begin, end = tensor["data_offsets"]
            inside = 0 <= begin <= end <= size - 8 - length
        except (TypeError, KeyError, ValueError) as error:
            raise _damaged(path, f"the entry of {name!r} has no offsets") from error
        if not inside:
            raise _damaged(path, f"{name!r} claims bytes {begin} to {end} outside the file")
    return header


def _read_torch(path: Path) -> State:
    import torch

    _check_archive(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # an old or odd pickle is not worth a warning
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())
        unsafe = re.search(r"GLOBAL ([\w.]+)", reason)
        why = f"it wants to run {unsafe[1]}, not only to load tensors" if unsafe else reason[:200]
        raise ModelError(
            f"{path} cannot be loaded",
            f"{why} ({type(error).__name__})",
            "it is damaged or not a plain checkpoint: save model.state_dict() and give that file",
        ) from error
    state = content
    for _ in range(3):  # {'state_dict': {…}} and the like, possibly nested
        wrapper = next(
            (key for key in _WRAPPERS if isinstance(state, Mapping) and isinstance(state.get(key), Mapping)),
            None,
        )
        if wrapper is None:
            break
        state = state[wrapper]
    if not isinstance(state, Mapping):
        raise ModelError(
            f"{path} holds a {type(state).__name__}",
            "expected a dictionary of tensors",
            "save model.state_dict()",
        )
    strange = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise ModelError(
            f"{path} is no dictionary of tensors",
            f"not tensors: {_listed(strange)}",
            "save model.state_dict() and give that file",
        )
    return {str(key): value for key, value in state.items()}


def _check_archive(path: Path) -> None:
    """Refuse exported programs and zip bombs before torch opens the file."""
    exported = ModelError(
        f"{path} is an exported program, not a checkpoint",
        "loading one can run code that it brings",
        "save model.state_dict() and give that file",
    )
    if path.suffix == ".pt2":
        raise exported
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if any(
        member.filename.endswith(("archive_format", "serialized_exported_program.json")) for member in members
    ):
        raise exported
    # torch.save stores without compression, so the parts can never be larger than the whole
    total, size = sum(member.file_size for member in members), path.stat().st_size
    if total > size:
        raise _damaged(path, f"its parts claim {total:,} bytes in a file of {size:,} (a zip bomb?)")


def _combine(states: list[State], expected: set[str], family: str | None, label: str) -> State:
    """One dictionary in our naming from one file, or from an encoder's and a decoder's."""
    if len(states) > 2:
        raise ModelError(
            f"{len(states)} weight files were given", "at most two are taken: encoder, decoder", "merge them"
        )
    combined: State = {}
    twice: list[str] = []
    for part, state in zip(("encoder", "decoder"), states, strict=False):
        for key, value in _rename(state, expected, family, part if len(states) == 2 else None).items():
            if key in combined:
                twice.append(key)
            combined[key] = value
    if twice:
        raise ModelError(
            f"{label}: both files hold {_listed(twice)}",
            "two files are taken as an encoder's and a decoder's",
            "give the encoder's first and the decoder's second, or one file that holds both",
        )
    return combined


def _rename(state: State, expected: set[str], family: str | None, part: str | None) -> State:
    """Our names for the tensors of one file; a name that no rule knows stays as it is."""
    if not expected.isdisjoint(state) and set(state) <= expected:
        return state
    if part is not None and {f"{part}.{key}" for key in state} <= expected:
        return {f"{part}.{key}": value for key, value in state.items()}
    renamed: State = {}
    for key, value in state.items():
        name = re.sub(r"^(encoder|decoder)\.", "", key)
        for pattern, ours in _PUBLISHED.get(family or "", ()):
            name = re.sub(pattern, ours, name)
        # CLNet writes its dense layers as convolutions of length 1, the decoder's transposed
        if name.endswith("fc.weight") and value.ndim == 3 and value.shape[2] == 1:
            value = value[:, :, 0].T if "replace_dfc" in key else value[:, :, 0]
        renamed[name if name in expected else key] = value
    return renamed


def _fit(module: nn.Module, state: State, label: str) -> None:
    """Load ``state`` if every tensor is there, has its shape and is made of finite numbers."""
    import torch

    own = module.state_dict()
    # how many batches a normalisation has seen is of no use here, and old files lack it
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    missing = sorted(set(own) - set(state) - counters)
    extra = sorted(key for key in set(state) - set(own) if not key.endswith("num_batches_tracked"))
    if missing or extra:
        parts = [f"missing: {_listed(missing)}"] * bool(missing) + [f"unexpected: {_listed(extra)}"] * bool(
            extra
        )
        raise ModelError(
            f"{label} does not fit the network: {len(missing)} tensors missing, {len(extra)} unexpected",
            "; ".join(parts),
            "check that the model and its compression ratio are the ones that were trained",
        )
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if shapes:
        raise ModelError(
            f"{label} does not fit the network: {len(shapes)} tensors of another shape",
            _listed(shapes),
            "check that the model and its compression ratio are the ones that were trained",
        )
    for key in counters:
        state.pop(key, None)
    _check_values({key: state[key] for key in own if key not in counters}, label)
    with torch.no_grad():
        for key, value in own.items():
            if key not in counters:
                value.copy_(state[key])


def check_module(module: nn.Module, label: str) -> None:
    """Refuse a network whose weights are not finite real floating-point numbers.

    Raises:
        ModelError: names the tensors.
    """
    state = {
        key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")
    }
    _check_values(state, label)


def _check_values(state: State, label: str) -> None:
    import torch

    real = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    kinds = [
        f"{key} ({str(value.dtype).removeprefix('torch.')})"
        for key, value in state.items()
        if value.dtype not in real or value.layout != torch.strided
    ]
    if kinds:
        raise ModelError(
            f"{label}: {len(kinds)} tensors are not real floating-point numbers",
            _listed(kinds),
            "save the weights as float32",
        )
    damaged = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if damaged:
        raise ModelError(
            f"{label}: {len(damaged)} tensors hold NaN or infinity",
            _listed(damaged),
            "the training diverged; train again",
        )
    negative = [
        key for key, value in state.items() if key.endswith("running_var") and bool((value < 0).any())
    ]
    if negative:
        raise ModelError(
            f"{label}: negative variances", _listed(negative), "the file is damaged; export it again"
        )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more:,} more" if more > 0 else "")


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} is damaged", " ".join(why.split())[:300], "copy or export it again")
