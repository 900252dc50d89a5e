"""Threads that share the work of a call: they wait for it, because starting one takes longer than a small network."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import cache
from queue import SimpleQueue
from threading import Thread
from typing import Any

Job = Callable[[], None]


class _Pool:
    """So many threads. Daemons, unlike those of `concurrent.futures`: there a Ctrl-C while one starts leaves it unknown
    to everybody, and the process waits for it at its end, for ever."""

    def __init__(self, threads: int) -> None:
        self.queue: SimpleQueue[tuple[Future[None], Job]] = SimpleQueue()
        for number in range(threads):
            Thread(target=self._serve, name=f"edgecsi_{number}", daemon=True).start()

    def _serve(self) -> None:
        while True:
            _carry_out(*self.queue.get())


def share(jobs: Sequence[Job]) -> None:
    """Do all jobs at once, the first one in the calling thread. None is still at work when this returns or raises,
    Ctrl-C included.

    Raises:
        Whatever a job raises.
    """
    if len(jobs) == 1:
        jobs[0]()
        return
    pool = _pool(len(jobs) - 1)
    others: list[Future[None]] = [Future() for _ in jobs[1:]]
    try:
        for future, job in zip(others, jobs[1:], strict=True):
            pool.queue.put((future, job))
        jobs[0]()
        for future in others:
            future.result()
    except BaseException:  # Ctrl-C too
        for future in others:
            future.cancel()
        _wait_for(others)
        raise


def _carry_out(future: Future[None], job: Job) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        job()
    except BaseException as error:  # whoever waits for the result raises it
        future.set_exception(error)
    else:
        future.set_result(None)


def _wait_for(futures: Sequence[Future[Any]]) -> None:
    """Wait until no thread works on any of these, however often somebody presses Ctrl-C meanwhile."""
    interrupted = False
    while True:
        try:
            wait(futures)
            break
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt


@cache
def _pool(threads: int) -> _Pool:
    return _Pool(threads)


# A forked process has no threads but the forking one: it needs pools of its own.
os.register_at_fork(after_in_child=_pool.cache_clear)
