"""``edgecsi deploy``: a bundle becomes the one that runs on a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecsi.cli.options import bundle_argument, complete_devices, json_option
from edgecsi.cli.output import columns, over_there, pairs, progress, report, resumable

if TYPE_CHECKING:
    from edgecsi.deploy import Deployed, Outcome


@click.command()
@bundle_argument
@click.argument("devices", metavar="DEVICE...", nargs=-1, required=True, shell_complete=complete_devices)
@click.option(
    "--root",
    metavar="DIR",
    help="Folder of all bundles on the device, in the home folder there unless it begins with /  "
    "[default: .edgecsi/bundles].",
)
@click.option(
    "--keep",
    type=click.IntRange(2, 100),
    default=3,
    show_default=True,
    metavar="N",
    help="Keep N releases there, the active and the previous one among them.",
)
@click.option("--require-signature", is_flag=True, help="Refuse a bundle that nobody listed has signed.")
@click.option(
    "--allowed-signers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Who may sign  [default: allowed_signers in ~/.config/edgecsi].",
)
@click.option("--downgrade", is_flag=True, help="Allow a lower build number than the active one's.")
@click.option(
    "--parallel",
    type=click.IntRange(1, 100),
    default=4,
    show_default=True,
    metavar="N",
    help="Devices at a time.",
)
@click.option(
    "--max-failures",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Begin with no further device after more than N failed.",
)
@click.option(
    "--deadline",
    type=click.FloatRange(0.1, 600),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="How long an entry's trial run may take on the device.",
)
@click.option("--dry-run", is_flag=True, help="Look, and say what would be done.")
@json_option
def command(
    bundle: Path,
    devices: tuple[str, ...],
    root: str | None,
    keep: int,
    require_signature: bool,
    allowed_signers: Path | None,
    downgrade: bool,
    parallel: int,
    max_failures: int,
    deadline: float,
    dry_run: bool,
    json_to: str | None,
) -> None:
    """Copy BUNDLE to each DEVICE, prove it there with its golden values, and activate it in one step. Until then,
    and if anything goes wrong, what was active stays active. A DEVICE is ssh://[user@]host[:port], a name of
    yours (edgecsi device list), or local.

    \b
    Example:
      edgecsi deploy csinet-pi ssh://pi@raspberrypi
      edgecsi deploy csinet-pi pi-1 pi-2 pi-3 --parallel 3 --max-failures 1
    """
    from edgecsi.bundle import read_bundle, signature
    from edgecsi.deploy import Options, deploy, deploy_all, destination

    found = read_bundle(bundle)
    if require_signature or allowed_signers is not None:
        signature.verify(found, allowed_signers or signature.default_allowed_signers())
    destinations = [destination(name, root) for name in devices]
    options = Options(keep=keep, deadline=deadline, lease=deadline + 20, downgrade=downgrade, dry_run=dry_run)
    with (
        resumable("each device has the old release or the new one, whole"),
        progress(f"deploying {found.manifest.name}") as update,
    ):
        if len(destinations) == 1:
            (only,) = destinations
            options = Options(**vars(options) | {"root": only.root, "folder": only.folder})
            try:
                done = deploy(found, only.connection, options, update)
            finally:
                only.connection.close()
            report([done], lambda: _one(done), json_to)
            return
        outcomes = deploy_all(
            found, destinations, options, parallel=parallel, max_failures=max_failures, progress=update
        )
    report([_plain(outcome) for outcome in outcomes], lambda: _table(outcomes), json_to)
    _raise_for(outcomes)


def _one(done: Deployed) -> str:
    return pairs(
        {
            "device": done.device,
            "release": f"{done.digest[:12]}: {done.action}",
            "sent": f"{done.sent_files} files, {done.sent_bytes:,} bytes",
            "previous": done.previous[:12] if done.previous else "none",
            "in": f"{over_there(done.place)}/current",
        }
    )


def _plain(outcome: Outcome) -> dict[str, object]:
    error = str(outcome.error) if outcome.error is not None else None
    deployed = vars(outcome.deployed) if outcome.deployed is not None else None
    return {"device": outcome.device, "deployed": deployed, "error": error, "seconds": outcome.seconds}


def _table(outcomes: Sequence[Outcome]) -> str:
    rows: list[tuple[object, ...]] = []
    for outcome in outcomes:
        done = outcome.deployed
        if done is not None:
            has, what, sent = done.digest[:12], done.action, f"{done.sent_bytes:,}"
        else:
            has, sent = "as before", "-"
            what = f"failed: {outcome.error.what}" if outcome.error is not None else "not tried"
        rows.append((outcome.device, has, what, sent, f"{outcome.seconds:.1f}"))
    return columns(("device", "release", "what happened", "bytes sent", "seconds"), rows)


def _raise_for(outcomes: Sequence[Outcome]) -> None:
    """Fail if any device did, with the first one's exit code and all of its words."""
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if not failed:
        return
    first = failed[0].error
    assert first is not None
    left = sum(not outcome.tried for outcome in outcomes)
    rest = f"; {left} not tried" if left else ""
    raise type(first)(
        f"{len(failed)} of {len(outcomes)} devices failed{rest}; the first, {failed[0].device}: {first.what}",
        first.why,
        first.fix,
    )
