"""Releases on a device: copied whole, proven there, activated in one rename, rolled back as fast."""

from edgecsi.deploy.deploy import ROOT, Deployed, Options, RolledBack, deploy, rollback
from edgecsi.deploy.far_side import Remote
from edgecsi.deploy.here import Here

__all__ = ["ROOT", "Deployed", "Here", "Options", "Remote", "RolledBack", "deploy", "rollback"]
