"""Running a bundle's library in this process: numpy in, numpy out, over the C face. No torch, no TVM."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from edgecsi.bundle import signature
from edgecsi.bundle.call import Array, Call, describe, short_way, to_samples
from edgecsi.bundle.manifest import Entry, Manifest
from edgecsi.bundle.read import Bundle, read_bundle
from edgecsi.bundle.shared_library import check_runs_here, open_library
from edgecsi.errors import BundleError, DataError, DeviceError, UsageError

_MAX_THREADS = 256


def load(path: str | Path, *, allowed_signers: str | Path | None = None) -> Loaded:
    """Verify a bundle and load its library.

    Args:
        path: the bundle's folder.
        allowed_signers: who may have signed it, as ``ssh-keygen`` reads it; by default nobody has to.

    Raises:
        BundleError: it is no bundle, any file of it was changed, or its signature does not count.
        DeviceError: this machine cannot run it: another architecture, or a CPU without a feature it needs.
    """
    bundle = read_bundle(path)
    if allowed_signers is not None:
        signature.verify(bundle, allowed_signers)
    return Loaded(bundle)


class Loaded:
    """A bundle's library, loaded. May be called from many threads at once.

    Use it in a ``with`` block, or call :meth:`close`, to unload the library; otherwise it goes with the object.

    Args:
        bundle: a verified bundle.

    Raises:
        DeviceError: this machine cannot run it.
        ToolchainError: its folder is mounted ``noexec``. BundleError: the dynamic linker refused it.
    """

    def __init__(self, bundle: Bundle) -> None:
        check_runs_here(bundle)
        self.bundle = bundle
        library = open_library(bundle)
        prefix = bundle.manifest.cname
        self._strerror: Any = library.function(f"{prefix}_strerror", ctypes.c_char_p, ctypes.c_int)
        self._calls = {
            name: Call(library, prefix, name, entry, self._fail) for name, entry in self.entries.items()
        }
        self._runs: dict[str | None, Any] = {name: short_way(call) for name, call in self._calls.items()}
        with suppress(BundleError):
            self._runs[None] = self._runs[bundle.chosen(None)]

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unload the library. Calls that are under way in other threads end first, later ones are refused.

        May be called twice. What :meth:`function` gave out keeps the library loaded for as long as it is held.
        """
        # Every C function holds its library, so this waits for nobody: the last one that goes unloads it.
        self._calls, self._runs = {}, {}
        self._strerror = None

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The functions of the library, with the names and shapes of their inputs and outputs."""
        return self.bundle.manifest.entries

    def run(self, *inputs: ArrayLike, entry: str | None = None, out: Array | None = None) -> Any:
        """Call one entry once.

        Args:
            inputs: one array per input, of exactly the entry's shapes. C-contiguous float32 is passed as it
                is; other real numbers are converted. An input of int32 takes integers of any type that fit.
            entry: ``encoder``, ``decoder``, ``full``, or whatever ``entries`` lists; default: ``full``, or the only one.
            out: where to write the (only) output: writable, contiguous float32 of its shape, apart from the
                inputs.

        Returns:
            The output, float32 of its shape; a tuple of them if the entry has several.

        Raises:
            DataError: an input or ``out`` has another shape or type.
            BundleError: the bundle has no such entry.
            DeviceError: the library returned an error code.
            UsageError: the library was closed.
        """
        try:
            run = self._runs[entry]
        except KeyError:
            self._call(self.bundle.chosen(entry))  # raises, saying why
            raise
        return run(inputs, out)

    def run_many(self, x: ArrayLike, entry: str | None = None, threads: int = 1) -> Array:
        """Call one entry for many samples: fast where the bundle was built with ``--batch``.

        Each thread takes an equal share of the samples, and for these the largest batch entries
        (``<entry>_b64``, ...) that fit. Every sample gets the answer that :meth:`run` gives it, but for the
        order of fp32 sums; sums of integers are exact in any order.

        Args:
            x: ``[N, *shape]``, ``shape`` being that of the entry's input without its first axis; any N, but a
                multiple of the first axis if that is not 1. Other types than float32 are converted.
            entry: as for :meth:`run`; it has one input and one output.
            threads: how many threads share the work, the calling one among them, 1 to 256. The library
                computes without holding Python's lock.

        Returns:
            float32 ``[N, *shape]`` of the output.

        Raises:
            DataError: ``x`` does not fit, or the entry has several inputs or outputs.
            UsageError: an impossible number of threads.
            BundleError, DeviceError: as :meth:`run` does.
        """
        from edgecsi.bundle.workers import share  # futures bring logging: not for those who call run only

        entry = self.bundle.chosen(entry)
        first = self._single(entry)
        if not isinstance(threads, int) or not 1 <= threads <= _MAX_THREADS:
            raise UsageError(
                f"run_many cannot use {threads!r} threads",
                f"it takes 1 to {_MAX_THREADS}",
                "give as many as the machine has cores to spare",
            )
        samples = to_samples(x, first.inputs[0])
        outputs: Array = np.empty((len(samples), *first.outputs[0].shape[1:]), first.outputs[0].dtype)
        at_once = first.inputs[0].shape[0]
        calls = [(size, self._call(name)) for size, name in self.bundle.batch_entries(entry).items()]
        in_bytes, out_bytes = (4 * t.size // at_once for t in (first.inputs[0], first.outputs[0]))

        def work(begin: int, end: int) -> None:
            # The arrays are named here so that they live as long as any thread works, whatever became of the caller.
            source, target = samples.ctypes.data, outputs.ctypes.data
            for size, call in calls:
                workspace = call.workspace.address
                while end - begin >= size:
                    places = source + begin * in_bytes, target + begin * out_bytes
                    if code := call.with_workspace(*places, workspace):
                        self._fail(call.name, code)
                    begin += size

        # Shares of whole calls, as equal as can be.
        units = len(samples) // at_once
        shares = min(threads, max(units, 1))
        parts = list(pairwise(units * number // shares * at_once for number in range(shares + 1)))
        # The caller's arrays may change or go after this: nobody may still be at work on them, whatever happens.
        share([partial(work, *part) for part in parts])
        return outputs

    def strerror(self, code: int) -> str:
        """The library's own words for a code it returned."""
        text: bytes | None = self._strerror(code) if self._strerror else None
        return text.decode("utf-8", "replace") if text else "unknown code"

    def function(self, entry: str) -> Any:
        """The C function of an entry itself (a ctypes function taking addresses), for measuring it alone."""
        return self._call(entry).function

    def profile(self, *inputs: ArrayLike, entry: str | None = None) -> list[float]:
        """Call one entry once and time its layers; measuring slows the call itself down.

        Args:
            inputs: as for :meth:`run`.
            entry: as for :meth:`run`.

        Returns:
            Nanoseconds per layer, in the order of ``entries[entry].layers``.

        Raises:
            DataError, BundleError, DeviceError: as :meth:`run` does.
        """
        return self._call(self.bundle.chosen(entry)).profile(inputs)

    def _call(self, entry: str) -> Call:
        self.bundle.entry(entry)
        try:
            return self._calls[entry]
        except KeyError:
            raise UsageError(
                f"{self.bundle.library.name} is closed", "close() unloaded it", "load the bundle again"
            ) from None

    def _single(self, entry: str) -> Entry:
        """The entry, which must map one tensor to one with equally many samples."""
        described = self.bundle.entry(entry)
        inputs, outputs = described.inputs, described.outputs
        if not described.maps_samples:
            raise DataError(
                f"run_many cannot be used for {entry}",
                f"it maps {', '.join(map(describe, inputs))} to {', '.join(map(describe, outputs))}, "
                "not one array of samples to another",
                "use run for it",
            )
        return described

    def _fail(self, entry: str, code: int) -> None:
        raise DeviceError(
            f"{self.bundle.library.name} failed in {entry} with code {code}",
            self.strerror(code),
            "run `edgecsi doctor`; if it finds nothing, this is a bug of edgecsi: please report it",
        )
