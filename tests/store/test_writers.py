"""Who may write a round, when: two at once, after the end, while it is removed; and what has reached the disk."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest

from selftrain_seg.store import _files, _lock
from tests.store.cases import NAMES, THRESHOLDS, joined, open_store, pseudo, tree, write_all

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
HELD = "round-0000 is open for writing by another writer of rank 0"


def write(root, **options):
    return open_store(root).write(0, NAMES, thresholds=THRESHOLDS, portion=0.2, **options)


def test_two_writers_of_one_rank_exclude_each_other(tmp_path):
    with write(tmp_path) as writer:
        for options in ({}, {"overwrite": True}):
            with pytest.raises(RuntimeError, match=HELD):
                write(tmp_path, **options)
        writer.add(NAMES[:1], pseudo(NAMES[0]))
        write(tmp_path, rank=1).close()
    with write(tmp_path) as writer:
        assert writer.missing() == NAMES[1:]


def test_a_refused_writer_holds_nothing(tmp_path):
    write(tmp_path).close()
    with pytest.raises(ValueError, match="`portion`"):
        open_store(tmp_path).write(0, NAMES, thresholds=THRESHOLDS, portion=0.3)
    write(tmp_path).close()


def test_a_lock_dies_with_its_process(tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "tests.store.workers", str(tmp_path)], stdin=subprocess.DEVNULL)
    try:
        journals = tmp_path / "round-0000/journal"
        while not (journals.exists() and any(path.read_bytes() for path in journals.iterdir())):
            assert process.poll() is None
            time.sleep(0.002)
        with pytest.raises(RuntimeError, match=HELD):
            write(tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    write(tmp_path).close()


@pytest.mark.parametrize("kind", ["another rank", "a copy"])
def test_nobody_writes_once_the_round_is_finished(tmp_path, kind):
    """A second writer opened before that damaged every file afterwards."""
    writer = write(tmp_path)
    late = write(tmp_path, rank=1) if kind == "another rank" else pickle.loads(pickle.dumps(writer))  # noqa: S301
    writer.add(NAMES, joined(NAMES))
    writer.finish()
    before = tree(tmp_path)

    def write_late():
        with late:
            for name in NAMES:
                late.add([name], pseudo(f"not {name}"))

    with pytest.raises(RuntimeError, match="round 0 was finished by another writer"):
        write_late()
    assert tree(tmp_path) == before
    assert open_store(tmp_path).verify(0) == []


def test_finish_waits_for_an_image_that_is_being_written(tmp_path, monkeypatch):
    writer, other = write(tmp_path), write(tmp_path, rank=1)
    writer.add(NAMES, joined(NAMES))
    writer._wait(at_most=0)
    inside, go_on, original = threading.Event(), threading.Event(), _files.write

    def slow(path, *arguments, **options):
        if path.parts[-3:-1] == ("labels", "town_0") and not inside.is_set():
            inside.set()
            assert go_on.wait(60)
        original(path, *arguments, **options)

    monkeypatch.setattr(_files, "write", slow)
    other.add(NAMES[:1], pseudo("another"))  # in its background
    assert inside.wait(60)
    finishing = threading.Thread(target=writer.finish)
    finishing.start()
    finishing.join(0.2)
    assert finishing.is_alive()
    assert open_store(tmp_path).rounds() == []
    go_on.set()
    finishing.join(60)
    other.close()
    assert open_store(tmp_path).rounds() == [0]
    assert open_store(tmp_path).verify(0) == []


def test_a_round_that_is_being_written_is_neither_begun_anew_nor_deleted(tmp_path):
    writer = write(tmp_path, rank=3)
    writer.add(NAMES[:2], joined(NAMES[:2]))
    for change in (lambda: write(tmp_path, overwrite=True), lambda: open_store(tmp_path).delete(0)):
        with pytest.raises(RuntimeError, match="open for writing by another writer of rank 3"):
            change()
    writer.close()
    assert write(tmp_path).missing() == NAMES[2:]


@pytest.mark.parametrize("change", ["begun anew", "deleted"])
def test_copies_of_a_writer_do_not_outlive_the_round(tmp_path, change):
    writer = write(tmp_path)
    copy = pickle.loads(pickle.dumps(writer))  # noqa: S301
    writer.close()
    if change == "deleted":
        open_store(tmp_path).delete(0)
    else:
        write(tmp_path, overwrite=True).close()
    before = tree(tmp_path)
    copy.add(NAMES[:1], pseudo(NAMES[0]))
    with pytest.raises(RuntimeError, match="round 0 was restarted or deleted"):
        copy.close()
    assert tree(tmp_path) == before


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def none(*arguments):
        raise OSError(_lock.errno.ENOLCK, "no locks available")

    monkeypatch.setattr(_lock.fcntl, "flock", none)
    with pytest.warns(UserWarning, match="this file system has no locks"):
        write_all(tmp_path)
    assert open_store(tmp_path).verify(0) == []


# --- deleting


def test_delete(tmp_path):
    for number in range(3):
        write_all(tmp_path, number, names=NAMES[:2])
    (tmp_path / "notes.txt").write_text("mine")
    store = open_store(tmp_path)
    opened = store.round(1)
    store.delete(1)
    assert (store.rounds(), store.latest().round) == ([0, 2], 2)
    assert {path.split("/")[0] for path in tree(tmp_path)} == {"round-0000", "round-0002", "notes.txt"}
    with pytest.raises(OSError, match="round-0001/labels"):
        opened.labels(0)
    for number in (1, 7):
        with pytest.raises(ValueError, match=rf"`round`: expected one of \[0, 2\], got {number}"):
            store.delete(number)
    with pytest.raises(TypeError, match="`round`"):
        store.delete("0")


@pytest.mark.parametrize(("keep", "left"), [(1, [2, 4]), (2, [1, 2, 4]), (3, [0, 1, 2, 4]), (9, [0, 1, 2, 4])])
def test_prune(tmp_path, keep, left):
    for number in (1, 2):
        write_all(tmp_path, number, names=["a"])
    for number in (0, 4):  # interrupted: one is old, one is being written
        open_store(tmp_path).write(number, ["a"]).close()
    store = open_store(tmp_path)
    deleted = store.prune(keep=keep)
    expected = [number for number in left if not (keep == 2 and number == 0)]
    assert sorted(store.rounds() + store.interrupted()) == expected
    assert deleted == [number for number in (0, 1, 2, 4) if number not in expected]
    with pytest.raises(ValueError, match="`keep`: expected at least 1"):
        store.prune(keep=0)


def test_a_killed_deletion_shows_no_half_round_and_is_ended_by_the_next(tmp_path, monkeypatch):
    for number in range(3):
        write_all(tmp_path, number, names=["a"])
    store = open_store(tmp_path)

    def killed(*arguments, **options):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("selftrain_seg.store._folder.shutil.rmtree", killed)
        with pytest.raises(OSError, match="killed"):
            store.delete(0)
    assert (store.rounds(), store.interrupted()) == ([1, 2], [])
    store.delete(1)
    assert {path.split("/")[0] for path in tree(tmp_path)} == {"round-0002"}


# --- what has reached the disk


@pytest.mark.skipif(os.name == "nt", reason="folders have no handles there")
def test_all_files_and_folders_reach_the_disk_before_the_manifest(tmp_path, monkeypatch):
    synced, at_manifest, original, write_file = set(), [], os.fsync, _files.write

    def fsync(fd):
        synced.add(os.fstat(fd).st_ino)
        original(fd)

    def note(path, *arguments, **options):
        if path.name == _files.MANIFEST:
            at_manifest.append(set(synced))
        write_file(path, *arguments, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(_files, "write", note)
    with write(tmp_path) as writer:  # half of them by another process, whose name is not known here
        writer.add(NAMES[:6], joined(NAMES[:6]))
    synced.clear()
    with write(tmp_path) as writer:
        writer.add(NAMES[6:], joined(NAMES[6:]))
        writer.finish()
    folder = tmp_path / "round-0000"
    (before,) = at_manifest
    paths = [path for path in folder.rglob("*") if path.name != _files.MANIFEST]
    assert len(paths) > 4 * len(NAMES)
    needed = {path.name: path.stat().st_ino for path in (folder, *paths) if path.name != _files.SETTINGS}
    assert {name for name, number in needed.items() if number not in before} == set()
    assert (folder / _files.MANIFEST).stat().st_ino in synced
