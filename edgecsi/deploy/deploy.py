"""A bundle becomes the one that runs on a device: all of it, proven there, or nothing.

    probe ─▶ lock ─▶ survey ─▶ copy ─▶ verify ─▶ settle ─▶ try ─▶ activate ─▶ prune ─▶ unlock

Until ``activate``, which is one rename, whatever ran on the device still does, whichever side dies or loses the
connection at any moment; and the next deployment needs no help to go on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from edgecsi.bundle import Bundle, Manifest, parse_manifest, signature
from edgecsi.bundle.manifest import MANIFEST, SIGNATURE
from edgecsi.deploy import lock
from edgecsi.deploy.far_side import FarSide
from edgecsi.device import install
from edgecsi.device.ssh import FOLDER
from edgecsi.device.transport import STEP_SECONDS, Connection
from edgecsi.errors import BundleError, ConnectionLost, DeviceError, EdgecsiError, Unreachable
from edgecsi.progress import Progress

ROOT = f"{FOLDER}/bundles"
"""Where bundles go on a device, below the user's home: ``<ROOT>/<bundle's name>/current`` is the active one."""

_CLEANING_SECONDS = 10.0
_HASH_SPEED = 5e6  # bytes a second that the slowest board hashes and writes through


@dataclass(frozen=True)
class Options:
    """How to deploy.

    Attributes:
        root: folder of all bundles on the device; relative to the user's home unless it begins with ``/``.
        folder: where our runner lies there.
        keep: how many releases stay, the active and the previous one among them.
        deadline: seconds that an entry's trial run may take. wait: seconds to wait for another deployment's end.
        lease: after how many seconds without a sign of life others may take our lock; more than ``deadline``.
        downgrade: allow a lower build number. dry_run: look, and change nothing.
    """

    root: str = ROOT
    folder: str = FOLDER
    keep: int = 3
    deadline: float = 20.0
    wait: float = 60.0
    lease: float = 40.0
    downgrade: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Deployed:
    """What a deployment did.

    Attributes:
        device: as messages call it. place: the bundle's folder there. digest: the bundle's.
        action: ``activated``, ``already active``, or after a dry run what would have been done.
        previous: digest of what was active before, None if nothing was.
        sent_files, sent_bytes: copied to the device.
    """

    device: str
    place: str
    digest: str
    action: str
    previous: str | None
    sent_files: int
    sent_bytes: int


@dataclass(frozen=True)
class Survey:
    """What a device has: names of releases, files by release and name, and the active manifest, if sound."""

    current: str = ""
    previous: str = ""
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    manifest: Manifest | None = None

    @staticmethod
    def parse(text: str) -> Survey:
        """From what the step ``survey`` printed; what makes no sense is not there."""
        links: dict[str, str] = {}
        files: dict[str, dict[str, str]] = {}
        manifest = None
        for line in text.splitlines():
            key, _, value = line.partition(" ")
            if key in ("current", "previous"):
                links[key] = value if re.fullmatch(r"[0-9a-f.]*", value) else ""
            elif key == "file":
                if match := re.fullmatch(r"([0-9a-f]{64})  releases/([0-9a-f.]+)/([A-Za-z0-9._/-]+)", value):
                    files.setdefault(match[2], {})[match[3]] = match[1]
            elif key == "manifest":
                with contextlib.suppress(BundleError):
                    manifest = parse_manifest(value.encode(), MANIFEST)
        return Survey(links.get("current", ""), links.get("previous", ""), files, manifest)

    def release_of(self, digest: str, wanted: dict[str, str]) -> str | None:
        """The release that has all these files, the active one if there are several."""
        names = [name for name, files in self.files.items() if name.partition(".")[0] == digest]
        sound = [name for name in sorted(names) if wanted.items() <= self.files[name].items()]
        return self.current if self.current in sound else next(iter(sound), None)

    def sources(self) -> dict[str, str]:
        """Where on the device each content lies already, by its sha256."""
        return {
            sha: f"releases/{release}/{name}"
            for release, files in self.files.items()
            for name, sha in files.items()
        }


def deploy(
    bundle: Bundle,
    connection: Connection,
    options: Options = Options(),  # frozen
    progress: Progress = lambda done, total, what: None,
) -> Deployed:
    """Deploy a bundle to one device.

    Args:
        bundle: a verified bundle.
        connection: the way to the device.
        options: how.
        progress: is told (bytes sent, bytes to send, what is being done).

    Raises:
        BundleError: it changed here meanwhile, is older than what is active, or the device trusts no signer of it.
        DeviceError: the device cannot run it, cannot be reached, has no room, or refused a step.
        CheckFailed: it answered wrongly on the device. What was active is active still, in each of these cases.
    """
    from edgecsi.deploy.trial import prove  # with numpy, which a rollback does not wait for

    manifest = bundle.manifest
    far = FarSide(connection, place_of(options.root, manifest.name), secrets.token_hex(8))
    contents = _contents(bundle)
    total = sum(_size(content) for content, _ in contents.values())
    patience = STEP_SECONDS + total / _HASH_SPEED

    progress(0, 0, f"asking what {connection.name} is")
    board, runner = install.prepare(connection, options.folder)
    board.check(bundle)
    if options.dry_run:
        return _dry_run(far, bundle, contents, options)

    lock.acquire(far, options.lease, options.wait)
    fresh = None
    try:
        there = Survey.parse(far.do("survey", timeout=patience))
        if not options.downgrade:
            refuse_downgrade(manifest, there.manifest, connection.name)
        sent: dict[str, int] = {}
        release = there.release_of(manifest.digest, _sums(contents))
        if release is None:
            sent = _copy(far, there, contents, patience, progress)
            progress(0, 0, "verifying on the device")
            far.do("verify", manifest.digest, timeout=patience)
            release = fresh = far.do("settle", manifest.digest, timeout=patience)
        progress(0, 0, "trying it on the device")
        prove(connection, bundle, runner, f"{far.place}/releases/{release}", options.deadline)
        far.do("activate", release, timeout=patience)
        fresh = None
        far.do("prune", str(options.keep), timeout=patience)
        lock.release(far)
    except BaseException as error:
        _give_up(far, fresh, error)
        raise
    unchanged = release == there.current
    action, before = ("already active", there.previous) if unchanged else ("activated", there.current)
    return Deployed(
        connection.name, far.place, manifest.digest, action, before.partition(".")[0] or None,
        len(sent), sum(sent.values()),
    )  # fmt: skip


def place_of(root: str, name: str) -> str:
    """The folder of a bundle on a device; relative to the user's home unless it begins with ``/``."""
    return f"{folder_of(root)}/{name}"


def folder_of(root: str) -> str:
    """The folder of all bundles, as the device's half takes it."""
    return root.removeprefix("~/").rstrip("/") or "/"


def refuse_downgrade(new: Manifest, active: Manifest | None, name: str) -> None:
    """Refuse a bundle that is older than what the device has.

    Raises:
        BundleError: its build number is lower, or it has none where the active one has.
    """
    if active is None or active.build_number is None:
        return
    if new.build_number is None or new.build_number < active.build_number:
        number = "no build number" if new.build_number is None else f"build number {new.build_number}"
        raise BundleError(
            f"{new.name} is older than what {name} runs", f"it has {number}, the device {active.build_number}",
            "deploy a newer build; --downgrade goes back on purpose",
        )  # fmt: skip


def _copy(
    far: FarSide, there: Survey, contents: Contents, patience: float, progress: Progress
) -> dict[str, int]:
    """Fill the incoming folder with what is there already and what is not; returns the bytes sent, by file."""
    sources = there.sources()
    pairs = [text for name, (_, sha) in contents.items() for text in (name, sources.get(sha, ""))]
    kilobytes = far.do("stage", *pairs, timeout=patience)
    missing = {name: content for name, (content, sha) in contents.items() if sha not in sources}
    to_send = sum(map(_size, missing.values()))
    if kilobytes.isdigit() and int(kilobytes) * 1024 < 2 * to_send:
        raise DeviceError(
            f"{far.connection.name} has too little room for the bundle",
            f"{int(kilobytes):,} kB are free in {far.place}, twice its {to_send / 1024:,.0f} kB are needed",
            "free some space there, or choose a folder on another disk with --root",
        )
    sent: dict[str, int] = {}
    for name, content in missing.items():
        progress(sum(sent.values()), to_send, f"copying {name}")
        sent[name] = far.send(content, name)
    return sent


def _give_up(far: FarSide, fresh: str | None, error: BaseException) -> None:
    """Leave the device as it was, as far as it can be reached; what cannot be done now, the next one does."""
    lock.abandon(far)
    if isinstance(error, ConnectionLost | Unreachable):
        return
    with contextlib.suppress(EdgecsiError):
        if fresh is not None:
            far.do("discard", fresh, timeout=_CLEANING_SECONDS)
        far.do("unlock", timeout=_CLEANING_SECONDS)


def _dry_run(far: FarSide, bundle: Bundle, contents: Contents, options: Options) -> Deployed:
    there = Survey.parse(far.do("survey"))
    if not options.downgrade:
        refuse_downgrade(bundle.manifest, there.manifest, far.connection.name)
    digest, sources = bundle.manifest.digest, there.sources()
    release = there.release_of(digest, _sums(contents))
    missing = {} if release else {n: c for n, (c, sha) in contents.items() if sha not in sources}
    action = "already active" if release and release == there.current else "would be activated"
    return Deployed(
        far.connection.name, far.place, digest, action, there.current.partition(".")[0] or None,
        len(missing), sum(map(_size, missing.values())),
    )  # fmt: skip


Contents = dict[str, tuple[bytes | Path, str]]
"""Every file that goes to a device: its name, its content or where that lies here, its sha256."""


def _contents(bundle: Bundle) -> Contents:
    contents: Contents = {
        name: (bundle.path / name, info.sha256) for name, info in sorted(bundle.manifest.files.items())
    }
    about = signature.manifest_bytes(bundle)
    signed = signature.read_signature(bundle)
    for name, data in ((MANIFEST, about), (SIGNATURE, signed)):
        if data is not None:
            contents[name] = (data, hashlib.sha256(data).hexdigest())
    return contents


def _sums(contents: Contents) -> dict[str, str]:
    return {name: sha for name, (_, sha) in contents.items()}


def _size(content: bytes | Path) -> int:
    if isinstance(content, bytes):
        return len(content)
    try:
        return content.stat().st_size
    except OSError as error:
        raise BundleError(
            f"{content} cannot be read", str(error.strerror), "build or copy the bundle again"
        ) from None


@dataclass(frozen=True)
class RolledBack:
    """What a rollback did: digest of what is active now, and of what was."""

    device: str
    place: str
    digest: str
    previous: str


def rollback(
    connection: Connection, name: str | None = None, options: Options = Options()
) -> RolledBack:  # frozen
    """Activate the previous release of a bundle again, in one message; a second rollback comes back.

    Args:
        connection: the way to the device.
        name: the bundle's name; not needed if there is only one.
        options: ``root``, ``wait`` and ``lease`` count.

    Raises:
        DeviceError: there is no previous release, it is damaged, or the device cannot be reached or refused.
        UsageError: no name was given, and there is not one bundle.
        BundleError: the device trusts no signer of it. What was active is active still, in each of these cases.
    """
    step, place = (
        ("rollback", place_of(options.root, name)) if name else ("only_rollback", folder_of(options.root))
    )
    far = FarSide(connection, place, secrets.token_hex(8))
    try:
        old, new, name = lock.acquire(far, options.lease, options.wait, step).split()
    finally:
        lock.abandon(far)
    return RolledBack(
        connection.name, place_of(options.root, name), new.partition(".")[0], old.partition(".")[0]
    )
