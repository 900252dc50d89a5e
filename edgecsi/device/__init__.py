"""Devices: where a bundle runs. All behind one protocol, opened by the name a user gives."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgecsi.errors import UsageError

if TYPE_CHECKING:
    from edgecsi.device.emulate import Emulated, count_instructions
    from edgecsi.device.local import Local
    from edgecsi.device.protocol import Device, DeviceInfo
    from edgecsi.device.remote import Remote

__all__ = ["Device", "DeviceInfo", "Emulated", "Local", "Remote", "count_instructions", "open_device"]

# Looked up when they are used: they need numpy, and what only asks or moves files starts faster without.
_WITH_NUMPY = {
    "Device": "protocol", "DeviceInfo": "protocol", "Emulated": "emulate", "Local": "local", "Remote": "remote",
    "count_instructions": "emulate",
}  # fmt: skip

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _WITH_NUMPY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_WITH_NUMPY[name]}"), name)


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
    from edgecsi.device.names import resolve

    spec = resolve(name)
    if cpu is not None and not spec.startswith("ssh://"):
        raise UsageError(
            f"no CPU can be chosen on {spec}", "our runner does that, over SSH", "use ssh://HOST"
        )
    if spec == "local":
        from edgecsi.device.local import Local

        return Local()
    if spec == "emulate":
        from edgecsi.device.emulate import Emulated

        return Emulated()
    if spec.startswith("ssh://"):
        from edgecsi.device.remote import Remote

        return Remote.over_ssh(spec, cpu=cpu)
    from edgecsi.device.rpc_device import Rpc

    return Rpc.opened(spec)
