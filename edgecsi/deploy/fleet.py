"""One bundle to several devices: some at a time, and no further when too many refuse."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from edgecsi.bundle import Bundle
from edgecsi.deploy.deploy import ROOT, Deployed, Options, deploy
from edgecsi.deploy.here import Here
from edgecsi.device.names import resolve
from edgecsi.device.ssh import FOLDER, Address, Ssh
from edgecsi.device.transport import Connection
from edgecsi.errors import EdgecsiError, UsageError
from edgecsi.progress import Progress

STOPPING_SECONDS = 5.0
"""How long Ctrl-C waits for what is being done to come to an end."""


@dataclass(frozen=True)
class Outcome:
    """How it went with one device.

    Attributes:
        device: as the user named it. deployed: what was done; None if it failed or was not tried.
        error: why it failed; None if it did not. seconds: how long it took.
    """

    device: str
    deployed: Deployed | None
    error: EdgecsiError | None
    seconds: float

    @property
    def tried(self) -> bool:
        """Whether anything was done there."""
        return self.deployed is not None or self.error is not None


@dataclass(frozen=True)
class Destination:
    """A device that bundles can be deployed to.

    Attributes:
        name: as the user named it. connection: the way there; nothing is connected yet.
        folder: where our files go there. root: where bundles go there.
    """

    name: str
    connection: Connection
    folder: str = FOLDER
    root: str = ROOT


def destination(name: str, root: str | None = None) -> Destination:
    """The device of this name.

    Args:
        name: ``local``, ``ssh://[user@]host[:port][/folder]``, or a name from a ``devices.toml``.
        root: folder of all bundles there; by default ``bundles`` in the device's folder, ``.edgecsi``.

    Raises:
        UsageError: there is no such device, or nothing can be deployed to it.
        DataError: a ``devices.toml`` cannot be read.
    """
    spec = resolve(name)
    if spec == "local":
        return Destination(name, Here(), FOLDER, root or ROOT)
    if spec.startswith(("ssh://", "rpc+ssh://")):
        address = Address.parse(spec.removeprefix("rpc+"))
        return Destination(name, Ssh(address), address.folder, root or f"{address.folder}/bundles")
    raise UsageError(
        f"nothing can be deployed to {name}",
        f"{spec} is no machine with a shell",
        "name a device that is reached over SSH: ssh://user@host, or local",
    )


def deploy_all(
    bundle: Bundle,
    devices: Sequence[Destination],
    options: Options = Options(),  # noqa: B008  # frozen
    *,
    parallel: int = 4,
    max_failures: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> list[Outcome]:
    """Deploy to several devices. Each is done wholly or left as it was; none depends on another.

    Args:
        bundle: a verified bundle.
        devices: where to.
        options: how; ``root`` and ``folder`` are the devices' own.
        parallel: how many at a time.
        max_failures: after how many failures more no other device is begun.
        progress: is told (devices done, devices, the last one's name).

    Returns:
        An outcome for each device, in the same order.

    Ctrl-C stops all of them: within seconds each device runs what it ran, or the new release, whole.
    """
    outcomes = [Outcome(device.name, None, None, 0.0) for device in devices]
    waiting = list(reversed(range(len(devices))))
    at_work: set[int] = set()
    failures, stopped = 0, False
    guard = threading.Lock()

    def next_one() -> int | None:
        with guard:
            if stopped or failures > max_failures or not waiting:
                return None
            at_work.add(waiting[-1])
            return waiting.pop()

    def go_on(done: float, total: float, what: str) -> None:
        if stopped:
            raise KeyboardInterrupt  # between two steps, where everything can be left as it was

    def work() -> None:
        nonlocal failures
        while (number := next_one()) is not None:
            device, begin, done, error = devices[number], time.monotonic(), None, None
            try:
                own = dataclasses.replace(options, root=device.root, folder=device.folder)
                done = deploy(bundle, device.connection, own, go_on)
            except EdgecsiError as caught:
                error = caught
            except KeyboardInterrupt:
                return
            finally:
                device.connection.close()
            with guard:
                outcomes[number] = Outcome(device.name, done, error, time.monotonic() - begin)
                at_work.remove(number)
                failures += error is not None
                finished = sum(outcome.tried for outcome in outcomes)
            progress(finished, len(devices), device.name)

    workers = [
        threading.Thread(target=work, name=f"deploy-{number}", daemon=True)
        for number in range(min(max(1, parallel), len(devices)))
    ]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        stopped = True
        # A step that is being taken ends when its connection does; what was active there is active still.
        for number in list(at_work):
            devices[number].connection.close()
        end = time.monotonic() + STOPPING_SECONDS
        for worker in workers:
            worker.join(max(0.0, end - time.monotonic()))
        raise
    return outcomes
