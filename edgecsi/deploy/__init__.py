"""Releases on a device: copied whole, proven there, activated in one rename, rolled back as fast."""

from edgecsi.deploy.deploy import ROOT, Deployed, Options, RolledBack, deploy, rollback
from edgecsi.deploy.fleet import Destination, Outcome, deploy_all, destination
from edgecsi.deploy.here import Here
from edgecsi.deploy.status import Release, Status, status

__all__ = [
    "ROOT",
    "Deployed",
    "Destination",
    "Here",
    "Options",
    "Outcome",
    "Release",
    "RolledBack",
    "Status",
    "deploy",
    "deploy_all",
    "destination",
    "rollback",
    "status",
]
