"""``edgecsi device``: the machines where bundles run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecsi.cli.options import can_be_written, complete_devices, device_argument, json_option
from edgecsi.cli.output import columns, over_there, pairs, progress, report
from edgecsi.errors import CheckFailed, DeviceError, UsageError

if TYPE_CHECKING:
    from edgecsi.deploy import Status
    from edgecsi.device import Remote
    from edgecsi.device.probe import Probe


@click.group()
def command() -> None:
    """Name devices, ask what they are, make them ready, clean them.

    A device is ssh://[user@]host[:port] (your ~/.ssh/config, keys and known hosts hold), or a name for one.

    \b
    Example:
      edgecsi device add pi4 ssh://pi@raspberrypi
      edgecsi device probe pi4
      edgecsi device setup pi4
      edgecsi bench csinet-pi --device pi4
    """


@command.command()
@click.argument("name")
@click.argument("spec")
@click.option("--project", is_flag=True, help="Write it to ./devices.toml instead of your own file.")
def add(name: str, spec: str, project: bool) -> None:
    """Call the device SPEC by NAME from now on.

    \b
    Example:
      edgecsi device add pi4 ssh://pi@raspberrypi
    """
    from edgecsi.device import names

    file = names.add(name, spec, Path(names.FILE) if project else None)
    click.echo(f"{name} is {spec}, says {file}")


@command.command("list")
@json_option
def list_(json_to: str | None) -> None:
    """List the names, and what they stand for.

    \b
    Example:
      edgecsi device list
    """
    from edgecsi.device import names

    found = names.listed()
    rows = [(named.name, named.spec, named.file) for named in found]
    none = "no names yet; local and emulate are always there"
    report(found, lambda: columns(("name", "device", "file"), rows) if rows else none, json_to)


@command.command()
@click.argument("name", shell_complete=complete_devices)
def remove(name: str) -> None:
    """Forget NAME; the device itself is left as it is.

    \b
    Example:
      edgecsi device remove pi4
    """
    from edgecsi.device import names

    click.echo(f"{names.remove(name)} has no {name} any more")


@command.command()
@device_argument
@click.option(
    "--write-target",
    type=click.Path(path_type=Path),
    callback=can_be_written,
    metavar="FILE.toml",
    help="Measure the board's limits and write a target file for it.",
)
@json_option
def probe(device: str, write_target: Path | None, json_to: str | None) -> None:
    """Ask DEVICE what it is, and whether bundles can run there. Nothing is installed.

    \b
    Example:
      edgecsi device probe ssh://pi@raspberrypi
      edgecsi device probe pi4 --write-target my-pi.toml
    """
    from edgecsi.device.board import probe as ask
    from edgecsi.device.probe import describe

    with _opened(device) as remote, progress("asking") as update:
        board = ask(remote.connection, remote.folder)
        ready = not board.troubles()
        found = describe(remote.board if ready else board)
        if write_target is not None and ready:
            from edgecsi import target as targets
            from edgecsi.bench.limits import limits_of
            from edgecsi.bench.measured_target import write_target as write

            update(0, 0, "measuring its limits")
            base = targets.load(found.target) if found.target else targets.load("host")
            write(write_target, found, limits_of(remote, base))
    report(found, lambda: _probe_text(found, write_target if ready else None), json_to)
    if found.troubles:
        raise DeviceError(
            f"bundles cannot run on {found.name}", found.troubles[0].what, found.troubles[0].cure
        )


@command.command()
@device_argument
@click.option("--rpc", is_flag=True, help="Also what TVM's RPC needs: its runtime (5 MB) and our agent.")
@json_option
def setup(device: str, rpc: bool, json_to: str | None) -> None:
    """Make DEVICE ready to run bundles: copies our runner there. Nothing is compiled there, no Python, internet
    or root is needed, and nothing of ours runs or listens there afterwards.

    \b
    Example:
      edgecsi device setup pi4 --rpc
    """
    from edgecsi.device import install

    with _opened(device) as remote, progress("copying"):
        board = remote.board
        if rpc:
            from edgecsi.device.install_rpc import install_rpc

            install_rpc(remote.connection, board)
        size = sum(install.held(remote.connection, board.folder).values())
    done = {"device": remote.spec, "folder": board.folder, "arch": board.arch, "rpc": rpc, "bytes": size}
    report(done, lambda: pairs(done), json_to)


@command.command()
@device_argument
@click.option("--root", metavar="DIR", help="As for `edgecsi deploy`.")
@json_option
def status(device: str, root: str | None, json_to: str | None) -> None:
    """Show which bundles are deployed on DEVICE, which release of each is current and which previous, whether
    any byte of them has changed since, and what of ours lies there. Fails (exit code 6) if any has changed.

    \b
    Example:
      edgecsi device status pi4
    """
    from edgecsi.deploy import destination
    from edgecsi.deploy import status as read_status
    from edgecsi.device import install

    there = destination(device, root)
    with contextlib.closing(there.connection):
        bundles = read_status(there.connection, there.root)
        held = install.held(there.connection, there.folder)
    done = {"device": device, "folder": there.folder, "bytes": held, "bundles": bundles}
    sizes = {f"{name} B": size for name, size in held.items()}
    head = pairs({"device": device, "folder": over_there(there.folder), **sizes})
    report(done, lambda: "\n\n".join([head, *map(_bundle_text, bundles)]), json_to)
    if drifted := [bundle.name for bundle in bundles if bundle.current and bundle.current.drift]:
        raise CheckFailed(
            f"{', '.join(drifted)} on {device} is not what was deployed",
            "files changed there since",
            "deploy the bundle again: a sound copy takes the place of the changed one",
        )


@command.command()
@device_argument
@click.argument("bundle", required=False)
@click.option("--root", metavar="DIR", help="As for `edgecsi deploy`.")
@json_option
def rollback(device: str, bundle: str | None, root: str | None, json_to: str | None) -> None:
    """Activate the previous release of BUNDLE (its name; not needed if there is only one) on DEVICE, in one
    step. Rolling back a second time comes back.

    \b
    Example:
      edgecsi device rollback pi4
      edgecsi device rollback pi4 csinet-cr4
    """
    from edgecsi.deploy import Options, destination
    from edgecsi.deploy import rollback as go_back

    there = destination(device, root)
    with contextlib.closing(there.connection):
        done = go_back(there.connection, bundle, Options(root=there.root))
    shown = {
        "device": device,
        "current": done.digest[:12],
        "previous": done.previous[:12],
        "in": over_there(done.place),
    }
    report(done, lambda: pairs(shown), json_to)


@command.command()
@device_argument
@click.argument("tracker")
def share(device: str, tracker: str) -> None:
    """Register DEVICE with TVM's tracker, tracker://HOST:PORT/KEY, and serve it until Ctrl-C. No port opens on the
    device; this machine listens on its loopback.

    \b
    Example:
      edgecsi device share pi4 tracker://127.0.0.1:9190/rpi4
    """
    from edgecsi.device import names
    from edgecsi.device.share import share as serve

    where = names.endpoint(names.resolve(tracker))
    if not where.key:
        raise UsageError(
            f"{tracker} is no tracker", "one looks like tracker://host:port/key", "give its address"
        )
    with _opened(device) as remote:
        serve(remote, where, say=click.echo)


@command.command()
@device_argument
@click.option("--bundles", is_flag=True, help="Also remove the bundles that were deployed there.")
@json_option
def clean(device: str, bundles: bool, json_to: str | None) -> None:
    """Remove what `device setup`, `run` and `bench` put on DEVICE.

    \b
    Example:
      edgecsi device clean pi4
    """
    from edgecsi.device import install

    with _opened(device) as remote:
        removed = install.clean(remote.connection, remote.folder, bundles=bundles)
    done = {"device": remote.spec, "removed": removed}
    report(done, lambda: f"removed {sum(removed.values()):,} bytes from {remote.spec}", json_to)


@contextlib.contextmanager
def _opened(name: str) -> Iterator[Remote]:
    """A device that a shell can be asked on."""
    from edgecsi.device import Remote
    from edgecsi.device.names import resolve

    spec = resolve(name)
    if "ssh://" not in spec:
        raise UsageError(
            f"{spec} cannot be set up",
            "it has no shell that can be asked",
            "give an ssh:// device, or its name",
        )
    with contextlib.closing(Remote.over_ssh(spec.removeprefix("rpc+"))) as remote:
        yield remote


def _bundle_text(found: Status) -> str:
    shown: dict[str, object] = {"bundle": found.name}
    for name, release in (("current", found.current), ("previous", found.previous)):
        if release is not None:
            state = "; ".join(release.drift) or release.untrusted or "as it was deployed"
            shown[name] = f"{release.digest[:12]}: {state}"
    shown |= {"target": found.target or None, "build": found.build_number, "releases": len(found.releases)}
    if found.deploying:
        shown["lock"] = f"{found.deploying} deploys, or was interrupted"
    return pairs({name: value for name, value in shown.items() if value is not None})


def _probe_text(found: Probe, written: Path | None) -> str:
    mhz = f"{found.mhz:.0f} MHz" if found.mhz else None
    limit = f"up to {found.max_mhz:.0f}" if found.max_mhz else None
    shown = {
        "device": found.name,
        "board": found.board,
        "system": found.system,
        "programs": f"{found.bits} bits on a {found.arch} kernel, glibc {found.glibc or 'missing'}",
        "CPU": f"{found.cores} cores{f', {found.cpu}' if found.cpu else ''}{', emulated' if found.emulated else ''}",
        "features": " ".join(found.features),
        "caches": ", ".join(f"L{level} {size >> 10} KiB" for level, size in found.cache_bytes.items())
        or None,
        "page": f"{found.page_bytes} bytes" if found.page_bytes else None,
        "frequency": ", ".join(part for part in (mhz, limit, found.governor) if part) or None,
        "temperature": f"{found.celsius:.0f} °C" if found.celsius is not None else None,
        "throttled": None if found.throttled is None else ", ".join(found.throttled) or "no",
        "memory": f"{found.memory_bytes >> 20:,} MiB" if found.memory_bytes else None,
        "folder": f"{found.folder}, {(found.free_bytes or 0) >> 20:,} MiB free",
        "target": f"build with --target {found.target}" if found.target else "none that ships fits its CPU",
        "written": str(written) if written else None,
    }
    lines = [pairs({name: value for name, value in shown.items() if value is not None})]
    lines += [f"trouble: {trouble.what}\n  -> {trouble.cure}" for trouble in found.troubles]
    return "\n".join(lines)
