"""``emulate``: QEMU user mode with exactly the CPU a bundle was built for.

It proves the answer, proves that no instruction is used that the CPU lacks, and counts instructions. Its
times are those of the emulator. Functions of libm come from another C library (musl) than on the device, so a
last bit of ``expf`` may differ.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecsi import disk
from edgecsi.bundle import Bundle, Entry
from edgecsi.device import state as states
from edgecsi.device import toolchain
from edgecsi.device.local import cpu_name
from edgecsi.device.protocol import Array, DeviceInfo, FirstCall, MeasuringProtocol, Samples, Series
from edgecsi.device.samples import from_calls, some_call, to_calls
from edgecsi.device.state import State
from edgecsi.errors import DeviceError, ToolchainError
from edgecsi.progress import Progress

_PATIENCE = 15
"""So many times its deadline a run may take that is kept from the CPU."""
_BUG = "if another bundle runs, this is a bug of edgecsi: please report it"


class Emulated:
    """QEMU user mode.

    Args:
        deadline: seconds after which a run is given up; ``None`` allows 60 s and, for every call, what the
            slowest of kernels would need.
    """

    spec = "emulate"

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline

    def info(self) -> DeviceInfo:
        """The emulator for ARM; which CPU it plays is the bundle's choice.

        Raises:
            ToolchainError: QEMU is missing.
        """
        version = ".".join(map(str, toolchain.qemu_version(toolchain.qemu("aarch64"))))
        return DeviceInfo(
            self.spec, f"QEMU {version} user mode on {cpu_name()}", "", frozenset(), emulated=True
        )

    def run(self, bundle: Bundle, entry: str, x: Samples) -> Array | tuple[Array, ...]:
        """See :meth:`edgecsi.device.protocol.Device.run`."""
        described = bundle.entry(entry)
        calls = to_calls(described, x)
        with _Job(bundle, entry, calls, self.deadline) as job:
            job.start("run", repeats=1)
            outputs, offset = [], 0
            for tensor in described.outputs:
                count = len(calls[0]) * tensor.size
                values = np.fromfile(job.result, np.float32, count, offset=offset)
                outputs.append(values.reshape(-1, *tensor.shape))
                offset += values.nbytes
        return from_calls(described, outputs)

    def time(
        self, bundle: Bundle, entry: str, x: Samples, repeats: int, *, flush_bytes: int = 0
    ) -> NDArray[np.float64]:
        """See :meth:`edgecsi.device.protocol.Device.time`; these are the emulator's times, no board's."""
        with _Job(bundle, entry, to_calls(bundle.entry(entry), x), self.deadline) as job:
            job.start("time", repeats, flush_bytes)
            return np.fromfile(job.result, np.float64)

    def measure(
        self,
        bundle: Bundle,
        entry: str,
        x: Samples,
        protocol: MeasuringProtocol,
        progress: Progress | None = None,
    ) -> Series:
        """Raises DeviceError: an emulator's times are no latencies."""
        raise _no_latencies()

    def profile(
        self, bundle: Bundle, entry: str, x: Samples, passes: int, seconds: float
    ) -> NDArray[np.float64]:
        """Raises DeviceError, as :meth:`measure`."""
        raise _no_latencies()

    def first_calls(self, bundle: Bundle, entry: str, x: Samples, count: int) -> list[FirstCall]:
        """Raises DeviceError, as :meth:`measure`."""
        raise _no_latencies()

    def state(self) -> State:
        """This machine's: the emulator runs on it."""
        return states.read()

    def run_program(
        self,
        program: Path,
        files: Sequence[Path] = (),
        *,
        library: Path | None = None,
        timeout: float = 120.0,
    ) -> str:
        """Raises DeviceError: programs are measured, and here measuring makes no sense."""
        raise _no_latencies()

    def close(self) -> None:
        """Nothing is held."""

    def count_instructions(self, bundle: Bundle, entry: str, x: Samples | None = None) -> int:
        """Instructions of one call, counted exactly by a QEMU plugin.

        Two runs of different length are compared, so that loading and start-up cancel. About 40 instructions
        are the loop around the call.

        Args:
            bundle: what to run.
            entry: as for :meth:`run`.
            x: the samples to run (the count is their mean); one of normally distributed numbers by default.

        Raises:
            ToolchainError: QEMU is missing or was built without plugins.
            DataError, DeviceError: as :meth:`run` does.
        """
        described = bundle.entry(entry)
        if x is None:
            x = some_call(described.inputs)
        calls = to_calls(described, x)
        few, many = (
            10,
            30,
        )  # as many digits: reading the argument costs the same; what starting costs varies a little
        with _Job(bundle, entry, calls, self.deadline) as job:
            difference = job.count(many) - job.count(few)
        return round(difference / ((many - few) * len(calls[0])))


def _no_latencies() -> DeviceError:
    return DeviceError(
        "nothing can be timed under emulation",
        "QEMU proves the answer and counts instructions, its times are no latencies",
        "use a real device: --device local, or ssh://HOST",
    )


def count_instructions(bundle: Bundle, entry: str) -> int:
    """Instructions of one call of an entry on the CPU it was built for; see
    :meth:`Emulated.count_instructions`."""
    return Emulated().count_instructions(bundle, entry)


def _run(command: Sequence[str], deadline: float) -> subprocess.CompletedProcess[str]:
    """Run without an environment; TimeoutExpired after so many seconds, unless others had the CPU: it does not hang."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env={}
    ) as process:
        for turn in range(1, _PATIENCE + 1):
            try:
                said, complained = process.communicate(timeout=deadline)
                return subprocess.CompletedProcess(command, process.returncode, said, complained)
            except subprocess.TimeoutExpired:
                state, used = states.process_state(process.pid)
                if state == "R" and used < deadline and turn < _PATIENCE:
                    continue
                process.kill()
                raise
            except BaseException:
                process.kill()
                raise
    raise AssertionError


class _Job:
    """One bundle, entry and set of samples, in a folder of its own, to be run by ``runner.c`` under QEMU."""

    def __init__(self, bundle: Bundle, entry: str, calls: Sequence[Array], deadline: float | None) -> None:
        target = bundle.manifest.target
        if not target.emulate:
            raise DeviceError(
                f"{bundle.path} cannot be emulated",
                f"QEMU has no CPU like {target.id}",
                "run it with --device local on such a machine",
            )
        self.bundle, self.entry, self.calls, self.deadline = bundle, entry, calls, deadline
        self.described: Entry = bundle.entry(entry)
        self.emulator = toolchain.qemu(target.arch)
        self.runner = toolchain.runner(target.arch)

    def __enter__(self) -> _Job:
        self._folder = disk.scratch()
        folder = self._folder.__enter__()
        self._input, self.result = folder / "in", folder / "out"
        with self._input.open("wb") as stream:
            for array in self.calls:
                stream.write(array.data)
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.__exit__(None, None, None)

    def start(self, mode: str, repeats: int, flush_bytes: int = 0, options: Sequence[str] = ()) -> str:
        """Run to the end; returns what the emulator printed."""
        manifest = self.bundle.manifest
        rounds = repeats * (len(self.calls[0]) if mode == "run" else 1)
        deadline = self.deadline or 60 + rounds * (0.05 + 1e-7 * self.described.macs + 1e-8 * flush_bytes)
        command = [str(self.emulator), "-cpu", manifest.target.emulate, *options, str(self.runner)]
        command += [str(self.bundle.library), f"{manifest.cname}_{self.entry}", mode, str(len(self.calls[0]))]
        command += [str(repeats), str(flush_bytes), str(self._input), str(self.result)]
        for tensors in (self.described.inputs, self.described.outputs):
            command.append(",".join(str(tensor.size) for tensor in tensors))
        what = f"{self.bundle.library.name} failed in {self.entry} under QEMU ({manifest.target.emulate})"
        try:
            # The environment is empty so that it cannot change the instruction count.
            done = _run(command, deadline)
        except subprocess.TimeoutExpired:
            raise DeviceError(what, f"no end after {deadline:.0f} s", _BUG) from None
        except OSError as error:
            raise ToolchainError(
                f"{self.emulator} does not start", str(error), "apt-get install qemu-user"
            ) from None
        if done.returncode:
            raise DeviceError(what, self._why(done), _BUG)
        return done.stderr

    def count(self, repeats: int) -> int:
        """Instructions of a whole run."""
        plugin = toolchain.icount_plugin(self.emulator)
        printed = self.start("run", repeats, options=["-plugin", str(plugin)])
        match = re.search(r"^instructions (\d+)$", printed, re.MULTILINE)
        if match is None:
            raise ToolchainError(
                f"{self.emulator} did not count instructions",
                printed.strip()[-200:] or "its plugins are switched off",
                "install QEMU 7 or later, built with plugins: apt-get install qemu-user",
            )
        return int(match[1])

    @staticmethod
    def _why(done: subprocess.CompletedProcess[str]) -> str:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
        if done.returncode == 3:
            return f"the library returned code {last}"
        if done.returncode == -signal.SIGILL:
            return "it used an instruction that this CPU lacks (SIGILL)"
        if done.returncode < 0:
            return f"it crashed ({signal.strsignal(-done.returncode)})"
        return last
