"""Broken and hostile files, made by hypothesis and given to every reader: each is read, or refused in three lines.

Anything else is a finding: another exception, a warning, a crash, more than two seconds of CPU time or two gigabytes, a
trace of something from a file having been run. Findings are shrunk to the smallest file that shows them.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgecsi.errors import EdgecsiError, Notice
from edgecsi.models import load as loading
from edgecsi.results.reliability import damage
from edgecsi.results.reliability.readers import Reader, make_samples, readers

SECONDS, GIGABYTES = 2.0, 2
PATIENCE = 3600  # seconds for a process to start and end on a busy machine; each read has its own limit
BATCH = 20


@dataclass
class Kind:
    """One way to damage one kind of file. `read`: it could be read all the same; `refused`: with a typed error."""

    executions: int = 0
    read: int = 0
    refused: int = 0


@dataclass
class Tally:
    """What a campaign has counted so far; a later run adds to it.

    Attributes:
        kinds: by ``reader: way``. errors: how often each error was met, numbers and names taken out.
        findings: what is to be mended, each once: kind, what happened, and the file that shows it.
        batches: how many have been run, which seeds the next. cpu_seconds: of the processes that damage and read, from
        their start to their end. reading_seconds: the part of it that readers took.
    """

    kinds: dict[str, Kind] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)
    batches: int = 0
    cpu_seconds: float = 0.0
    reading_seconds: float = 0.0

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Tally:
        """From the JSON that :meth:`tree` made."""
        kinds = {name: Kind(**kind) for name, kind in tree.get("kinds", {}).items()}
        errors = Counter(dict(tree.get("errors", {})))
        return cls(
            kinds,
            errors,
            dict(tree.get("findings", {})),
            tree.get("batches", 0),
            tree.get("cpu_seconds", 0.0),
            tree.get("reading_seconds", 0.0),
        )

    def tree(self) -> dict[str, Any]:
        """As JSON, in a fixed order."""
        return {
            "executions": sum(kind.executions for kind in self.kinds.values()),
            "kinds": {name: asdict(self.kinds[name]) for name in sorted(self.kinds)},
            "errors": dict(sorted(self.errors.items())),
            "findings": dict(sorted(self.findings.items())),
            "batches": self.batches,
            "cpu_seconds": round(self.cpu_seconds, 1),
            "reading_seconds": round(self.reading_seconds, 1),
        }

    def add(self, other: Tally) -> None:
        """Count what another process has counted."""
        for name, kind in other.kinds.items():
            mine = self.kinds.setdefault(name, Kind())
            mine.executions += kind.executions
            mine.read += kind.read
            mine.refused += kind.refused
        self.errors.update(other.errors)
        self.findings.update(other.findings)
        self.cpu_seconds += other.cpu_seconds
        self.reading_seconds += other.reading_seconds


class Finding(Exception):
    """A file that was neither read nor refused as it should be."""


def fuzz(
    tally: Tally,
    minutes: float,
    keep: Path,
    only: str = "",
    save: Callable[[Tally], None] = lambda tally: None,
    jobs: int = 1,
    batch: int = BATCH,
) -> Tally:
    """Read damaged files for some minutes, but of every kind a batch at least.

    Args:
        tally: what earlier runs counted; it is added to. keep: folder for files that show a finding.
        only: a part of the names of readers to be tried. save: called now and then with the tally so far.
        jobs: readers at a time. batch: files of one kind in a row.
    """
    end = time.monotonic() + 60 * minutes
    server = multiprocessing.get_context("forkserver")
    # what takes long to import, once
    server.set_forkserver_preload(
        ["torch", "h5py", "scipy.io", "hypothesis", damage.__name__, loading.__name__]
    )
    with tempfile.TemporaryDirectory(prefix="edgecsi-fuzz-") as name, ThreadPoolExecutor(jobs) as threads:
        samples = Path(name) / "samples"
        make_samples(samples)
        chosen = [reader.name for reader in readers(samples) if only in reader.name]
        while not tally.kinds or time.monotonic() < end:
            share = max(min((end - time.monotonic()) * jobs / len(chosen), 60.0), 0.5)
            running = [
                threads.submit(
                    _one_process, server, samples, keep, reader, share, tally.batches + number, batch
                )
                for number, reader in enumerate(chosen)
            ]
            for done in as_completed(running):
                tally.add(done.result())
                tally.batches += 1
                save(tally)
    return tally


def _one_process(
    server: Any, samples: Path, keep: Path, reader: str, seconds: float, seed: int, batch: int
) -> Tally:
    """A process for each reader: it may crash, and what its libraries keep goes with it."""
    work = Path(tempfile.mkdtemp(dir=samples.parent))
    ours, theirs = server.Pipe(duplex=False)
    process = server.Process(target=_work, args=(samples, work, keep, reader, seconds, seed, batch, theirs))
    process.start()
    theirs.close()
    tally = Tally()
    try:
        if ours.poll(seconds + PATIENCE):
            tally = ours.recv()
    except EOFError:
        pass
    process.join(60)
    if process.exitcode != 0:
        _lost(tally, process.exitcode, reader, work, keep)
        process.kill()
    shutil.rmtree(work)
    return tally


def _lost(tally: Tally, code: int | None, reader: str, work: Path, keep: Path) -> None:
    """The process that read is gone, or hangs: the file it was at shows why."""
    what = "hangs" if code is None else f"crashes ({signal.strsignal(-code) if code < 0 else f'exit {code}'})"
    for path in work.glob("damaged.*"):
        kept = _keep(path.read_bytes(), path.suffix, keep)
        tally.findings[f"{reader}: {what}"] = f"the whole process; {kept}"


def _work(
    samples: Path, work: Path, keep: Path, name: str, seconds: float, seed: int, batch: int, pipe: Any
) -> None:
    """In a process of its own: damage and read, and send the tally."""
    import torch

    torch.set_num_threads(1)
    os.chdir(work)
    used = int(re.findall(r"\d+", Path("/proc/self/statm").read_text())[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + (GIGABYTES << 30), resource.RLIM_INFINITY))
    reader = next(reader for reader in readers(samples) if reader.name == name)
    good = (samples / reader.sample).read_bytes()
    reader.read(_put(work, reader, good))  # a good file is read, and what is imported late is imported

    tally, end = Tally(), time.monotonic() + seconds
    number = 0
    while not number or time.monotonic() < end:
        for way_name, way in damage.ways(reader.form).items():
            number += 1
            _batch(tally, reader, f"{name}: {way_name}", good, way, work, keep, 1000 * seed + number, batch)
    tally.cpu_seconds = time.process_time()
    pipe.send(tally)
    pipe.close()


def _batch(
    tally: Tally,
    reader: Reader,
    kind: str,
    good: bytes,
    way: Any,
    work: Path,
    keep: Path,
    seed: int,
    batch: int,
) -> None:
    import hypothesis
    from hypothesis import strategies as st

    counts = tally.kinds.setdefault(kind, Kind())
    last = b""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=batch, database=None, deadline=None, print_blob=False, report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck), phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )  # fmt: skip
    @hypothesis.given(st.data())
    def read_one(data: Any) -> None:
        nonlocal last
        try:
            damaged = last = way(good, lambda strategy: data.draw(strategy))
        except (MemoryError, RecursionError):
            hypothesis.reject()  # so deep that it cannot even be made
        counts.executions += 1
        start = time.process_time()
        try:
            error = read(reader, damaged, work)
        finally:
            tally.reading_seconds += time.process_time() - start
        counts.read += error is None
        counts.refused += error is not None
        if error is not None and len(tally.errors) < 2000:
            tally.errors[_anonymous(error)] += 1

    try:
        read_one()
    except Finding as finding:
        kept = _keep(last, reader.suffix, keep)
        tally.findings[f"{reader.name}: {str(finding)[:200]}"] = f"{kind}; {kept}"
    except hypothesis.errors.HypothesisException as error:
        tally.findings[f"{reader.name}: {type(error).__name__}"] = f"{kind}; {str(error)[:200]}"


def read(reader: Reader, content: bytes, work: Path) -> EdgecsiError | None:
    """Read one file as a user would; the error it is refused with, or None if it was read.

    Raises:
        Finding: something else happened.
    """
    path = _put(work, reader, content)
    start, refused = time.process_time(), None
    try:
        with warnings.catch_warnings(), _at_most(10 * SECONDS):
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", Notice)  # lines for the user, on purpose
            reader.read(path)
    except EdgecsiError as error:
        refused = error
        if (
            not error.what
            or not error.why
            or not error.fix
            or not all(map(_readable, (error.what, error.why, error.fix)))
        ):
            raise Finding(f"an error that is not three lines of text: {error!r}") from error
    except Exception as error:
        place = _place(error)
        raise Finding(f"{type(error).__name__} at {place}: {_plain(str(error))[:120]}") from error
    if (took := time.process_time() - start) > SECONDS:
        raise Finding(f"it takes more than {SECONDS:g} s ({took:.0f} s)")
    if (work / damage.MARK).exists():
        (work / damage.MARK).unlink()
        raise Finding("something from the file was run")
    return refused


class _TooLong(Exception):
    pass


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise _TooLong(f"no end after {seconds:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _put(work: Path, reader: Reader, content: bytes) -> Path:
    path = work / f"damaged{reader.suffix}"
    path.write_bytes(content)
    return path


def _keep(content: bytes, suffix: str, keep: Path) -> str:
    keep.mkdir(parents=True, exist_ok=True)
    path = keep / (hashlib.sha256(content).hexdigest()[:12] + suffix)
    path.write_bytes(content)
    return path.name


def _readable(text: str) -> bool:
    return text.replace("\n", " ").isprintable() and len(text) < 4000


def _place(error: BaseException) -> str:
    """The innermost line of ours."""
    place, step = "?", error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if "/edgecsi/" in file and "/reliability/" not in file:
            place = f"{file.rpartition('/edgecsi/')[2]}:{step.tb_frame.f_code.co_name}"
        step = step.tb_next
    return place


def _plain(text: str) -> str:
    return "".join(ch if ch.isprintable() else "?" for ch in text)


def _anonymous(error: EdgecsiError) -> str:
    """The error without numbers and names, so that equal ones are counted together."""
    text = re.sub(r"/[^ :]*", "PATH", f"{error.what} | {error.why}")
    text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "X", text)
    text = re.sub(r"[-+]?[0-9][0-9.,e+]*", "N", text)
    words = re.sub(r"[^A-Za-z |,:;()]", "", text).split()
    return f"{type(error).__name__}: {' '.join(word for word in words if len(word) < 20)[:90]}"
