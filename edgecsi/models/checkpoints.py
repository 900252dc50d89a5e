"""Weights from files that anyone may have written, put into a network.

What a file holds is found by :mod:`edgecsi.models.checkpoint_files`; here its tensors get the network's names, if they
are the network's, and are loaded all or not at all. Known layouts of other projects are renamed to ours.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgecsi.errors import ModelError, Notice
from edgecsi.models import sparse_tensors
from edgecsi.models.checkpoint_files import Candidate, State, listed, read_candidates, shards

if TYPE_CHECKING:
    from torch import nn

_WRAPPERS = ("module", "_orig_mod")  # parts of a name that DataParallel and torch.compile put in
_COUNTER = "num_batches_tracked"  # of no use here, and old files lack it
_NEAREST = 50  # names that are compared with each other; a hostile file may have millions

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

    Names need not be the network's own where there is no doubt: one prefix that all have is taken off, masks of
    pruning are multiplied in, published layouts of the zoo are known.

    Args:
        module: network of the right structure; changed only if everything fits.
        files: one file, or two for a network split into encoder and decoder. ``FILE#NAME`` takes the part NAME of a
            file that holds several, such as ``ema``.
        family: zoo family, to recognise its published layout.

    Returns:
        the metadata of a ``.safetensors`` file, else empty.

    Raises:
        ModelError: the file is damaged, hostile, of another kind, or its tensors do not fit; every missing
            and unexpected tensor is named.
    """
    if len(files) > 2:
        raise ModelError(
            f"{len(files)} weight files were given", "at most two are taken: encoder, decoder", "merge them"
        )
    own = module.state_dict()
    expected = {key for key in own if not key.endswith(_COUNTER)}
    most = sum(value.numel() for value in own.values())
    metadata: dict[str, str] = {}
    states: list[State] = []
    for part, given in zip(("encoder", "decoder"), files, strict=False):
        path, name = split_name(given)
        candidates, found = read_candidates(path, most)
        metadata |= found
        only = part if len(files) == 2 else None
        states.append(_choose(candidates, path, name, expected, family, only))
    label = ", ".join(map(str, files))
    _fit(module, _combine(states, label), label, family)
    return metadata


def split_name(given: Path) -> tuple[Path, str | None]:
    """``FILE#NAME`` as file and name; a file may have # in its own name."""
    text = str(given)
    if given.is_file() or "#" not in text:
        return given, None
    file, _, name = text.rpartition("#")
    return Path(file), name


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
    """Hex digest over the contents of the files, one after the other; of shards, not of their index."""
    digest = hashlib.sha256()
    for given in files:
        path, name = split_name(given)
        for shard in shards(path):
            with shard.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        digest.update((name or "").encode())
    return digest.hexdigest()


def _choose(
    candidates: list[Candidate],
    path: Path,
    name: str | None,
    expected: set[str],
    family: str | None,
    part: str | None,
) -> State:
    """The tensors of a file under the network's names; of several that fit the likeliest, or the one asked for."""
    if name is not None:
        named = [candidate for candidate in candidates if candidate.name == name]
        if not named:
            names = ", ".join(candidate.name or "the file itself" for candidate in candidates)
            raise ModelError(
                f"{path} holds no {name!r}", f"it holds {names}", "name one of these behind the #"
            )
        candidates = named
    renamed = [_rename(candidate.state, expected, family, part) for candidate in candidates]
    wanted = {key for key in expected if part is None or key.startswith(f"{part}.")}
    fitting = [number for number, state in enumerate(renamed) if _names(state) == wanted]
    if not fitting:
        best = min(range(len(renamed)), key=lambda number: len(_names(renamed[number]) ^ wanted))
        return renamed[best]
    first, *others = (candidates[number].name for number in fitting)
    if others and name is None:
        warnings.warn(
            Notice(
                f"{path} holds several sets of weights that fit: took {first!r}, not {', '.join(map(repr, others))}"
                f" (--weights {path}#{others[0]} takes that)"
            ),
            stacklevel=2,
        )
    return renamed[fitting[0]]


def _names(state: State) -> set[str]:
    return {key for key in state if not key.endswith(_COUNTER)}


def _combine(states: list[State], label: str) -> State:
    """One dictionary from one file's, or from an encoder's and a decoder's."""
    combined: State = {}
    twice: list[str] = []
    for state in states:
        twice += sorted(combined.keys() & state.keys())
        combined |= state
    if twice:
        raise ModelError(
            f"{label}: both files hold {listed(twice)}",
            "two files are taken as an encoder's and a decoder's",
            "give the encoder's first and the decoder's second, or one file that holds both",
        )
    return combined


def _rename(state: State, expected: set[str], family: str | None, part: str | None) -> State:
    """The tensors under the network's names, if one way to rename them makes all of them fit; else as they are, but
    for what is known of the family."""
    wanted = {key for key in expected if part is None or key.startswith(f"{part}.")}
    state = _masked(state, expected, part)
    for tried in _spellings(state):
        for named in (tried, {f"{part}.{key}": value for key, value in tried.items()}):
            if _names(named) == wanted:
                return named
        published = _published(tried, expected, family)
        if _names(published) == wanted:
            return published
    return _published(state, expected, family)


def _spellings(state: State) -> Iterator[State]:
    """The tensors as they are, without a prefix that all names share, without what wrappers put into names."""
    yield state
    shared = min(state, default="").split(".")[:-1]
    prefix = ""
    for word in shared:
        prefix += f"{word}."
        if not all(key.startswith(prefix) for key in state):
            break
        yield {key[len(prefix) :]: value for key, value in state.items()}
    plain = {".".join(w for w in key.split(".") if w not in _WRAPPERS): value for key, value in state.items()}
    if len(plain) == len(state):
        yield plain


def _masked(state: State, expected: set[str], part: str | None) -> State:
    """``weight_orig`` times ``weight_mask``, as torch.nn.utils.prune leaves them, where the network has a weight."""
    result = dict(state)
    for key in state:
        name = key.removesuffix("_orig")
        if name == key or f"{name}_mask" not in state or key in expected or f"{part}.{key}" in expected:
            continue
        weight, mask = result[key], result[f"{name}_mask"]
        if weight.shape == mask.shape:
            del result[key], result[f"{name}_mask"]
            result[name] = weight * mask
    return result


def _published(state: State, expected: set[str], family: str | None) -> State:
    """Our names for the tensors of a file by a family's authors; a name that no rule knows stays as it is."""
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


def _fit(module: nn.Module, state: State, label: str, family: str | None) -> None:
    """Load ``state`` if every tensor is there, has its shape and is made of finite numbers."""
    import torch

    own = {key: value for key, value in module.state_dict().items() if not key.endswith(_COUNTER)}
    state = {key: value for key, value in state.items() if not key.endswith(_COUNTER)}
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or extra:
        parts = [f"missing: {listed(_with_nearest(missing, extra))}"] * bool(missing)
        parts += [f"unexpected: {listed(extra)}"] * bool(extra)
        raise ModelError(
            f"{label} does not fit the network: {len(missing)} tensors missing, {len(extra)} unexpected",
            "; ".join(parts),
            "give the weights of this network, or make the network that these weights are of",
        )
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(value.shape)}"
        for key, value in own.items()
        if state[key].shape != value.shape
    ]
    if shapes:
        raise ModelError(
            f"{label} does not fit the network: {len(shapes)} tensors of another shape",
            listed(shapes),
            "check that the compression ratio is the one that was trained"
            if family
            else "make the network with the sizes that it was trained with",
        )
    _check_values(state, label, module)
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(state[key])


def _with_nearest(missing: list[str], extra: list[str]) -> list[str]:
    """Missing names, each with the unexpected one that is most like it."""
    named = []
    for name in missing[:_NEAREST]:
        near = difflib.get_close_matches(name, extra[:_NEAREST], 1)
        named.append(f"{name} ({near[0]}?)" if near else name)
    return named + missing[_NEAREST:]


def check_module(module: nn.Module, label: str) -> None:
    """Refuse a network whose weights are not finite, or whose tensors hold NaN.

    Raises:
        ModelError: names the tensors.
    """
    state = {
        key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")
    }
    _check_values(state, label, module)


def _check_values(state: State, label: str, module: nn.Module) -> None:
    """Parameters are finite numbers. A buffer may be anything that forward computes with: integers that index, a mask
    of minus infinity, complex numbers; only NaN is nobody's, nor infinite statistics."""
    import torch

    real = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    complex_ones = {key for key, value in module.state_dict().items() if value.is_complex()}
    buffers = {key for key, _ in module.named_buffers() if ".running_" not in f".{key}"}
    kinds = [
        f"{key} ({str(value.dtype).removeprefix('torch.')})"
        for key, value in state.items()
        if (value.dtype not in real and key not in buffers | complex_ones)
        or (value.is_complex() and key not in complex_ones)
        or value.layout != torch.strided
        or value.is_quantized
    ]
    if kinds:
        raise ModelError(
            f"{label}: {len(kinds)} tensors are not real floating-point numbers",
            listed(kinds),
            "save the weights as float32",
        )
    damaged = [
        key
        for key, value in state.items()
        if bool((torch.isnan(value) if key in buffers else ~torch.isfinite(value)).any())
    ]
    if damaged:
        raise ModelError(
            f"{label}: {len(damaged)} tensors hold NaN or infinity",
            listed(damaged),
            "the training diverged; train again",
        )
    negative = [
        key for key, value in state.items() if key.endswith("running_var") and bool((value < 0).any())
    ]
    if negative:
        raise ModelError(
            f"{label}: negative variances", listed(negative), "the file is damaged; export it again"
        )
