"""What is deployed on a device, and whether it still is what was deployed."""

from __future__ import annotations

import contextlib
import re
import secrets
from dataclasses import dataclass, field

from edgecsi.bundle import Manifest, parse_manifest
from edgecsi.bundle.manifest import MANIFEST
from edgecsi.deploy.deploy import folder_of
from edgecsi.deploy.far_side import FarSide
from edgecsi.deploy.lock import Holder
from edgecsi.device.transport import Connection
from edgecsi.errors import BundleError

_SECONDS = 300.0  # every file of every active and previous release is read


@dataclass(frozen=True)
class Release:
    """A release that a link points to.

    Attributes:
        digest: of the bundle. drift: what is not as it was deployed, a line each; empty if all is well.
        untrusted: why the device would not activate it (again); empty if it would.
    """

    digest: str
    drift: tuple[str, ...] = ()
    untrusted: str = ""


@dataclass(frozen=True)
class Status:
    """What a device has of one bundle.

    Attributes:
        name: the bundle's. current, previous: None if there is none. releases: digests of all that are there.
        build_number, target: of the current one; None and "" if it has none or its manifest is damaged.
        deploying: who deploys right now, or did and was interrupted; empty if nobody.
    """

    name: str
    current: Release | None
    previous: Release | None
    releases: tuple[str, ...]
    build_number: int | None
    target: str
    deploying: str


@dataclass
class _Found:
    links: dict[str, Release] = field(default_factory=dict)
    releases: list[str] = field(default_factory=list)
    manifest: Manifest | None = None
    deploying: str = ""


def status(connection: Connection, root: str) -> list[Status]:
    """Read and verify what is deployed on a device; changes nothing there.

    Args:
        connection: the way to the device.
        root: folder of all bundles there.

    Raises:
        DeviceError: it cannot be reached, or cannot be read.
    """
    far = FarSide(connection, folder_of(root), secrets.token_hex(8))
    found: dict[str, _Found] = {}
    here, link = _Found(), ""
    for line in far.do("status", timeout=_SECONDS).splitlines():
        key, _, value = line.partition(" ")
        value = "".join(c if c.isprintable() else "?" for c in value)
        if key == "bundle":
            here = found.setdefault(value[:100], _Found())
        elif key in ("current", "previous"):
            link = key
            here.links[link] = Release(value.partition(".")[0][:64])
        elif key == "changed" and link in here.links:
            release = here.links[link]
            here.links[link] = Release(release.digest, (*release.drift, value[:200]), release.untrusted)
        elif key == "untrusted" and link in here.links:
            release = here.links[link]
            here.links[link] = Release(release.digest, release.drift, value[:200])
        elif key == "release" and re.fullmatch(r"[0-9a-f.]{64,}", value):
            here.releases.append(value.partition(".")[0])
        elif key == "held":
            here.deploying = Holder.parse(value).who
        elif key == "manifest":
            with contextlib.suppress(BundleError):
                here.manifest = parse_manifest(value.encode(), MANIFEST)
    return [
        Status(
            name,
            one.links.get("current"),
            one.links.get("previous"),
            tuple(one.releases),
            one.manifest.build_number if one.manifest else None,
            one.manifest.target.id if one.manifest else "",
            one.deploying,
        )
        for name, one in sorted(found.items())
    ]
