"""Devices: where a bundle runs. All behind one protocol, opened by the name a user gives."""

from edgecsi.device.emulate import Emulated, count_instructions
from edgecsi.device.local import Local
from edgecsi.device.names import resolve
from edgecsi.device.protocol import Device, DeviceInfo
from edgecsi.device.remote import Remote
from edgecsi.errors import UsageError

__all__ = ["Device", "DeviceInfo", "Emulated", "Local", "Remote", "count_instructions", "open_device"]


def open_device(name: str, *, cpu: int | None = None) -> Device:
    """The device of this name.

    Args:
        name: an address: ``local`` (this CPU), ``emulate`` (QEMU with the bundle's CPU),
            ``ssh://[user@]host[:port]``, ``rpc+ssh://…``, ``rpc://host:port``, ``tracker://host:port/key``;
            or a name from a ``devices.toml``. Nothing is connected yet.
        cpu: keep to this CPU there, for ``ssh://`` only.

    Raises:
        UsageError: there is no such device, or no way to choose its CPU.
        DataError: a ``devices.toml`` cannot be read.
    """
    spec = resolve(name)
    if cpu is not None and not spec.startswith("ssh://"):
        raise UsageError(
            f"no CPU can be chosen on {spec}", "our runner does that, over SSH", "use ssh://HOST"
        )
    if spec == "local":
        return Local()
    if spec == "emulate":
        return Emulated()
    if spec.startswith("ssh://"):
        return Remote.over_ssh(spec, cpu=cpu)
    from edgecsi.device.rpc_device import Rpc

    return Rpc.opened(spec)
