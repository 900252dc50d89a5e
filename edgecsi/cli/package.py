"""``edgecsi package``: a bundle for package managers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from edgecsi.cli.options import bundle_argument, output_option

if TYPE_CHECKING:
    from edgecsi.deploy.package import Format


@click.command()
@bundle_argument
@click.option("--format", "kind", type=click.Choice(["deb", "tar"]), default="deb", show_default=True)
@output_option("DIR", "Folder of the package  [default: this one].", default=Path("."), folder=True)
@click.option(
    "--version", metavar="V", help="Of the package  [default: the build number, or 0+DIGEST without one]."
)
@click.option(
    "--maintainer",
    metavar="'NAME <MAIL>'",
    help="Whom the Debian package names  [default: $DEBFULLNAME <$DEBEMAIL>].",
)
def command(bundle: Path, kind: str, out: Path, version: str | None, maintainer: str | None) -> None:
    """Verify BUNDLE and pack it for apt, Ansible, Mender or whatever else manages your devices: library, header,
    pkg-config and CMake files, manifest and signature. The same bundle gives the same bytes.

    \b
    Example:
      edgecsi package csinet-pi --maintainer 'Ada Lovelace <ada@example.org>'
      edgecsi package csinet-pi --format tar
    """
    from edgecsi.bundle import read_bundle
    from edgecsi.deploy.package import write_package

    path = write_package(
        read_bundle(bundle), cast("Format", kind), out, version=version, maintainer=maintainer
    )
    click.echo(f"{path}\n{path.stat().st_size:,} bytes")
