"""Devices: where a bundle runs. All behind one protocol, opened by the name a user gives."""

from edgecsi.device.emulate import Emulated, count_instructions
from edgecsi.device.local import Local
from edgecsi.device.protocol import Device, DeviceInfo
from edgecsi.device.remote import Remote
from edgecsi.errors import UsageError

__all__ = ["Device", "DeviceInfo", "Emulated", "Local", "Remote", "count_instructions", "open_device"]


def open_device(spec: str) -> Device:
    """The device of this name.

    Args:
        spec: ``local`` (this CPU), ``emulate`` (QEMU with the bundle's CPU) or ``ssh://[user@]host[:port]``.

    Raises:
        UsageError: there is no such device.
    """
    if spec == "local":
        return Local()
    if spec == "emulate":
        return Emulated()
    if spec.startswith("ssh://"):
        return Remote.over_ssh(spec)
    raise UsageError(
        f"there is no device {spec!r}",
        "known devices: local, emulate, ssh://[user@]host[:port]",
        "choose one with --device",
    )
