"""Devices: where a bundle runs. All behind one protocol, opened by the name a user gives."""

from edgecsi.device.emulate import Emulated, count_instructions
from edgecsi.device.local import Local
from edgecsi.device.protocol import Device, DeviceInfo
from edgecsi.errors import UsageError

__all__ = ["Device", "DeviceInfo", "Emulated", "Local", "count_instructions", "open_device"]


def open_device(spec: str) -> Device:
    """The device of this name.

    Args:
        spec: ``local`` (this CPU) or ``emulate`` (QEMU with the bundle's CPU).

    Raises:
        UsageError: there is no such device.
    """
    if spec == "local":
        return Local()
    if spec == "emulate":
        return Emulated()
    raise UsageError(
        f"there is no device {spec!r}", "known devices: local, emulate", "choose one with --device"
    )
