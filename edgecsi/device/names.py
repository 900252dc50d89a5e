"""Names for devices: ``pi4`` instead of ``ssh://pi@raspberrypi``.

They stand in ``devices.toml`` of a project (the folder one works in, or one above it) or of the user; a project's
names come first:

    [devices]
    pi4 = "ssh://pi@raspberrypi"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from edgecsi import disk
from edgecsi.device.ssh import Address
from edgecsi.errors import DataError, UsageError
from edgecsi.schema import decode_toml, matching, read_bytes

FILE = "devices.toml"
KINDS = "local, emulate, ssh://[user@]host[:port], rpc+ssh://[user@]host[:port], rpc://host:port, tracker://host:port/key"
_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_HOST = r"(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[A-Za-z0-9_][A-Za-z0-9._-]*):(?P<port>\d{1,5})"

Name = Annotated[str, matching(_NAME, "a name of letters, digits, '_' and '-'")]
Spec = Annotated[str, matching(r"[\x20-\x7e]{1,300}", "an address such as ssh://pi@raspberrypi")]


@dataclass(frozen=True)
class Names:
    """The contents of a ``devices.toml``."""

    devices: Mapping[Name, Spec] = field(default_factory=dict)


@dataclass(frozen=True)
class Named:
    """A device's name, what it stands for, and the file that says so."""

    name: str
    spec: str
    file: Path


@dataclass(frozen=True)
class Endpoint:
    """A server: host, port, and with a tracker the key under which it knows its boards."""

    host: str
    port: int
    key: str = ""


def user_file() -> Path:
    """``$XDG_CONFIG_HOME/edgecsi/devices.toml``, else ``~/.config/edgecsi/devices.toml``."""
    return disk.own_folder(".config", "XDG_CONFIG_HOME") / FILE


def project_file() -> Path | None:
    """The ``devices.toml`` of this folder or the nearest one above; None if there is none."""
    here = Path.cwd()
    return next((folder / FILE for folder in (here, *here.parents) if (folder / FILE).is_file()), None)


def listed() -> list[Named]:
    """All names, in alphabetical order; a project's hides the user's.

    Raises:
        DataError: a file cannot be read, or says what it may not.
    """
    found: dict[str, Named] = {}
    for file in (user_file(), project_file()):
        if file is not None and file.is_file():
            for name, spec in _read(file).items():
                found[name] = Named(name, check(spec), file)
    return [found[name] for name in sorted(found)]


def resolve(text: str) -> str:
    """The address behind a name; an address is its own.

    Raises:
        UsageError: neither; the message lists what there is.
        DataError: a ``devices.toml`` cannot be read.
    """
    if text in ("local", "emulate") or "://" in text:
        return check(text)
    names = listed()
    for named in names:
        if named.name == text:
            return named.spec
    known = f"known devices: {', '.join(named.name for named in names)}; and " if names else "known devices: "
    raise UsageError(
        f"there is no device {text!r}",
        f"{known}{KINDS}",
        "choose one with --device, or name one: edgecsi device add",
    )


def check(spec: str) -> str:
    """The address as it is.

    Raises:
        UsageError: it is none that a device may have.
    """
    scheme, _, rest = spec.partition("://")
    if spec in ("local", "emulate"):
        return spec
    if scheme in ("ssh", "rpc+ssh"):
        Address.parse(f"ssh://{rest}")
        return spec
    if scheme in ("rpc", "tracker"):
        endpoint(spec)
        return spec
    raise UsageError(f"{spec!r} is no device", f"devices are {KINDS}", "for example ssh://pi@raspberrypi")


def endpoint(spec: str) -> Endpoint:
    """Reads ``rpc://host:port`` or ``tracker://host:port/key``.

    Raises:
        UsageError: it is neither.
    """
    scheme, _, rest = spec.partition("://")
    key = r"/(?P<key>[A-Za-z0-9_.-]{1,64})" if scheme == "tracker" else "(?P<key>)"
    match = re.fullmatch(_HOST + key, rest)
    if match is None or not 0 < int(match["port"]) < 65536:
        form = "tracker://host:port/key" if scheme == "tracker" else "rpc://host:port"
        raise UsageError(f"{spec!r} is no device", f"such an address looks like {form}", "correct it")
    return Endpoint(match["host"].strip("[]"), int(match["port"]), match["key"])


def add(name: str, spec: str, file: Path | None = None) -> Path:
    """Give a device a name, or the name another device.

    Args:
        name: letters, digits, ``_`` and ``-``.
        spec: its address.
        file: where to write; the user's by default.

    Returns:
        The file.

    Raises:
        UsageError: the name cannot be one, or the address is none.
        DataError: the file cannot be read.
    """
    if not re.fullmatch(_NAME, name) or name in ("local", "emulate"):
        raise UsageError(
            f"a device cannot be called {name!r}",
            "names have letters, digits, _ and -",
            "choose another name",
        )
    file = file or user_file()
    names = {**_read(file), name: check(spec)}
    _write(file, names)
    return file


def remove(name: str, file: Path | None = None) -> Path:
    """Forget a name; returns the file it stood in.

    Raises:
        UsageError: there is no such name.
        DataError: a file cannot be read.
    """
    files = [file] if file else [found for found in (project_file(), user_file()) if found is not None]
    for candidate in files:
        names = _read(candidate)
        if name in names:
            del names[name]
            _write(candidate, names)
            return candidate
    raise UsageError(f"there is no device {name!r}", "no devices.toml names it", "see `edgecsi device list`")


def _read(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    data = read_bytes(file, error=DataError)
    return dict(decode_toml(data, Names, what=str(file), error=DataError, fix="correct the file").devices)


def _write(file: Path, names: Mapping[str, str]) -> None:
    quoted = {name: spec.replace("\\", "\\\\").replace('"', '\\"') for name, spec in sorted(names.items())}
    text = "[devices]\n" + "".join(f'{name} = "{spec}"\n' for name, spec in quoted.items())
    disk.write(file, text)
