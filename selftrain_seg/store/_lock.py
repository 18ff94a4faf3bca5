"""Locks between processes, which are released when the process ends."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Collection, Iterator
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCKS = ".locks"  # folder of empty files next to the rounds, kept when a round is restarted
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_HELD = {errno.EAGAIN, errno.EACCES, errno.EDEADLK, errno.EWOULDBLOCK}
_SECONDS = 0.01  # polling interval where the system cannot wait for a lock


class Lock:
    """A lock on a file, held by one holder (or several in ``shared``) and released when the process ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._users = 0
        self._mutex = threading.Lock()
        _all.add(self)

    def take(self) -> bool:
        """Take the lock until ``release``; False if another holder has it."""
        return self._lock(shared=False, wait=False)

    def release(self) -> None:
        if self._fd is None:
            return
        # Closing the file is not enough: a forked process may still have it open.
        with contextlib.suppress(OSError):
            _unlock(self._fd)
        os.close(self._fd)
        self._fd = None

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock exclusively inside a ``with`` block; wait for it."""
        self._lock(shared=False, wait=True)
        try:
            yield
        finally:
            self.release()

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock with others inside a ``with`` block; wait for exclusive holders. Threads share one hold."""
        with self._mutex:
            if self._users == 0:
                self._lock(shared=True, wait=True)
            self._users += 1
        try:
            yield
        finally:
            with self._mutex:
                self._users -= 1
                if self._users == 0:
                    self.release()

    def forget(self) -> None:
        """Drop the lock in a forked process; the parent holds it."""
        fd, self._fd, self._users, self._mutex = self._fd, None, 0, threading.Lock()
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.release()

    def _lock(self, *, shared: bool, wait: bool) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            while not _try(fd, shared=shared, wait=wait):
                if not wait:
                    os.close(fd)
                    return False
                time.sleep(_SECONDS)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(fd)
                raise
            warnings.warn(
                f"{self.path}: this file system has no locks, so two writers may write the same round", stacklevel=2
            )
        self._fd = fd
        return True


def _try(fd: int, *, shared: bool, wait: bool) -> bool:
    try:
        if sys.platform == "win32":  # all locks are exclusive, and the system cannot wait for one
            os.lseek(fd, 0, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise
    return True


def _unlock(fd: int) -> None:
    if sys.platform == "win32":
        os.lseek(fd, 0, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(fd, fcntl.LOCK_UN)


_all: weakref.WeakSet[Lock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_all):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


class RoundLocks:
    """The locks of one round: one per rank, held while its writer is open, and one held during each change."""

    def __init__(self, folder: Path) -> None:
        self._start = folder.parent / LOCKS / folder.name
        self.change = Lock(self._start)

    def of_rank(self, rank: int) -> Lock:
        return Lock(self._start.with_name(f"{self._start.name}.rank-{rank}"))

    def all_ranks(self) -> list[Lock]:
        """The locks of all ranks that have written this round."""
        return [Lock(path) for path in self._start.parent.glob(f"{self._start.name}.rank-*")]

    @contextlib.contextmanager
    def no_writer(self, but: Collection[Path] = ()) -> Iterator[None]:
        """Hold all locks except those at the paths ``but``; RuntimeError if another writer has the round open."""
        with contextlib.ExitStack() as stack:
            for lock in self.all_ranks():
                if lock.path in but:
                    continue
                if not lock.take():
                    raise RuntimeError(held(lock.path))
                stack.callback(lock.release)
            stack.enter_context(self.change.exclusive())
            yield


def held(path: Path) -> str:
    name, rank = path.name.split(".rank-")
    return (
        f"{path.parent.parent / name} is open for writing by another writer of rank {rank}; close it, or wait "
        "until its process ends"
    )
