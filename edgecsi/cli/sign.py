"""``edgecsi sign``: vouch for a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from edgecsi.cli.options import bundle_argument


@click.command()
@bundle_argument
@click.option(
    "--key",
    required=True,
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="SSH private key; or the .pub of one that the SSH agent holds.",
)
def command(bundle: Path, key: Path) -> None:
    """Verify every file of BUNDLE and sign its manifest, which has the sha256 of each. `edgecsi inspect` and
    `edgecsi deploy` check the signature, and so does a device that has an allowed-signers file.

    \b
    Example:
      edgecsi sign csinet-pi --key ~/.ssh/id_ed25519
    """
    from edgecsi.bundle import read_bundle, signature

    found = read_bundle(bundle)
    path = signature.sign(found, key.expanduser())
    click.echo(f"{path}\nsigned {found.manifest.name}, digest {found.manifest.digest}")
