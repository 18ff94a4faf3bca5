"""Rounds that were killed, went wrong or were written by several processes become what one quiet run makes."""

import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch

from selftrain_seg import PseudoLabels
from selftrain_seg.store import _files
from tests.ranks import free_port, start
from tests.store import workers
from tests.store.cases import NAMES, THRESHOLDS, joined, open_store, pseudo, tree, write_all

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """The bytes of a round that was never interrupted."""
    root = tmp_path_factory.mktemp("quiet")
    write_all(root)
    return tree(root)


def begin(root, count, **options):
    """A round interrupted after so many images."""
    with open_store(root, **options).write(0, NAMES, thresholds=THRESHOLDS, portion=0.2) as writer:
        writer.add(NAMES[:count], joined(NAMES[:count]))


def journal_lines(root):
    return sum(path.read_bytes().count(b"\n") for path in root.glob("round-0000/journal/*.jsonl"))


@pytest.mark.parametrize("after", [1, 8, 12])
def test_killed_and_continued(tmp_path, quiet, after):
    script = [sys.executable, "-m", "tests.store.workers", str(tmp_path)]
    process = subprocess.Popen(script, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        end = time.monotonic() + 120
        while journal_lines(tmp_path) < after and time.monotonic() < end and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    written = journal_lines(tmp_path)
    assert written >= after
    store = open_store(tmp_path)
    assert (store.rounds(), store.interrupted(), store.latest()) == ([], [0], None)
    with pytest.raises(ValueError, match="`round`: expected a complete round, got 0, which is not complete"):
        store.round(0)
    thresholds = store.settings(0).thresholds
    assert torch.equal(thresholds.view(torch.int64), THRESHOLDS.view(torch.int64))

    with store.write(0, NAMES, thresholds=thresholds, portion=0.2, progress=True) as writer:
        missing = writer.missing()
        assert len(missing) == len(NAMES) - written
        for name in missing:
            writer.add([name], pseudo(name))
        writer.finish()
    assert tree(tmp_path) == quiet


def test_half_a_line_half_a_file_and_files_that_nobody_listed(tmp_path, quiet):
    begin(tmp_path, 5)
    folder = tmp_path / "round-0000"
    (journal,) = (folder / "journal").glob("*.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    (folder / ".partial" / "deadbeef").write_bytes(b"\x89PNG half")
    unlisted = folder / "labels" / f"{NAMES[8]}.png"
    unlisted.parent.mkdir(exist_ok=True)
    unlisted.write_bytes(b"something else")
    store = open_store(tmp_path)
    with store.write(0, NAMES, thresholds=THRESHOLDS, portion=0.2) as writer:
        assert len(writer.missing()) == 8
        assert NAMES[8] in writer.missing()
        for name in writer.missing():
            writer.add([name], pseudo(name))
    writer.finish()  # also after the block
    assert tree(tmp_path) == quiet


@pytest.mark.parametrize("kind", ["labels", "confidence", "soft", "pixel_weight"])
def test_what_was_damaged_meanwhile_is_written_again(tmp_path, quiet, kind):
    begin(tmp_path, 6)
    (tmp_path / f"round-0000/{kind}/{NAMES[2]}.png").write_bytes(b"")
    (tmp_path / f"round-0000/{kind}/{NAMES[4]}.png").unlink()
    with open_store(tmp_path).write(0, NAMES, thresholds=THRESHOLDS, portion=0.2) as writer:
        assert writer.missing() == [NAMES[2], NAMES[4], *NAMES[6:]]
        writer.add(NAMES, joined(NAMES))  # what is whole is left as it is
        writer.finish()
    assert tree(tmp_path) == quiet


@pytest.mark.parametrize("at", ["images.jsonl", "manifest.json", "cleaning"])
def test_failure_while_finishing(tmp_path, quiet, monkeypatch, at):
    write = _files.write

    def failing(path, *args, **options):
        if path.name == at:
            raise OSError("disk full")
        write(path, *args, **options)

    writer = open_store(tmp_path).write(0, NAMES, thresholds=THRESHOLDS, portion=0.2)
    writer.add(NAMES, joined(NAMES))
    with monkeypatch.context() as patch:
        patch.setattr(_files, "write", failing)
        if at == "cleaning":
            patch.setattr("selftrain_seg.store._complete.shutil.rmtree", lambda *args, **options: None)
            writer.finish()
            assert any("journal" in path for path in tree(tmp_path))
            assert open_store(tmp_path).rounds() == [0]
        else:
            with pytest.raises(OSError, match="disk full"):
                writer.finish()
            assert open_store(tmp_path).rounds() == []
    with open_store(tmp_path).write(0, NAMES, thresholds=THRESHOLDS, portion=0.2) as again:
        assert again.missing() == []
    again.finish()
    assert tree(tmp_path) == quiet


def test_images_may_be_written_in_any_order(tmp_path, quiet):
    with open_store(tmp_path).write(0, NAMES, thresholds=THRESHOLDS, portion=0.2) as writer:
        for name in reversed(NAMES):
            writer.add([name], pseudo(name))
        writer.finish()
    assert tree(tmp_path) == quiet


def test_a_complete_round_opens_with_nothing_to_do(tmp_path, quiet):
    write_all(tmp_path)
    with open_store(tmp_path).write(0, NAMES, thresholds=THRESHOLDS, portion=0.2) as writer:
        assert writer.missing() == []
        assert open_store(tmp_path).rounds() == [0]
        writer.add(NAMES[:1], pseudo("something else"))
        writer.finish()
    assert tree(tmp_path) == quiet


def test_finish_asks_for_every_image(tmp_path):
    begin(tmp_path, 4)
    writer = open_store(tmp_path).write(0, NAMES, thresholds=THRESHOLDS, portion=0.2)
    with pytest.raises(
        RuntimeError, match=r"round 0 is not complete: 8 of 12 images are missing: 'town_1/image 4', .*…"
    ):
        writer.finish()
    assert open_store(tmp_path).interrupted() == [0]


def test_finish_sees_files_that_vanished(tmp_path):
    with open_store(tmp_path).write(0, NAMES[:2]) as writer:
        writer.add(NAMES[:2], joined(NAMES[:2]))
        writer.close()
        (tmp_path / f"round-0000/soft/{NAMES[1]}.png").unlink()
        with pytest.raises(RuntimeError, match=r"1 of 2 images are missing: 'town_1/image 1'$"):
            writer.finish()


def test_two_versions_of_one_image(tmp_path):
    """Two processes wrote it, not alike but as many bytes: the record of what is on disk counts."""
    for number in range(4):
        for label in [0, 1, 0, 1][: number + 1]:
            writer = open_store(tmp_path).write(number, ["x"])
            writer._done.clear()  # as a process that began at the same time
            writer.add(["x"], PseudoLabels(torch.full((1, 1, 1), label), torch.ones(1, 1, 1)))
            writer.close()
        stored = open_store(tmp_path).write(number, ["x"]).finish()
        assert stored.read("x").labels == label
        assert stored.counts[0].tolist() == [1 - label, label, 0, 0, 0]
        assert open_store(tmp_path).verify(number) == []


def test_fields_must_be_the_same_in_all_images(tmp_path):
    hard = PseudoLabels(pseudo("b").labels, pseudo("b").confidence)
    writer = open_store(tmp_path).write(0, ["a", "b"])
    writer.add(["a"], pseudo("a"))
    with pytest.raises(
        ValueError, match="`pseudo`: expected labels, 'confidence', 'soft', 'pixel_weight' as in previous"
    ):
        writer.add(["b"], hard)
    writer.close()
    writer = open_store(tmp_path).write(0, ["a", "b"])  # also by another process
    with pytest.raises(ValueError, match=r"as in previous images, got labels, 'confidence'$"):
        writer.add(["b"], hard)
    writer._kinds = None  # as a process that began at the same time
    writer.add(["b"], hard)
    with pytest.raises(RuntimeError, match="expected the same fields in all images, got labels, confidence, soft, pix"):
        writer.finish()


# --- settings


def test_other_settings_are_refused(tmp_path):
    begin(tmp_path, 3)
    before = tree(tmp_path)

    def write(names=NAMES, thresholds=THRESHOLDS, portion=0.2, overwrite=False, **options):
        return open_store(tmp_path, **options).write(
            0, names, thresholds=thresholds, portion=portion, overwrite=overwrite, meta={"time": time.time()}
        )

    other = THRESHOLDS.clone()
    other[1] = 1.0
    for name, arguments, got in [
        ("thresholds", {"thresholds": other}, "got 1.0 instead of 0.9999999999999999 at place 1"),
        ("thresholds", {"thresholds": None}, "got None instead of .*"),
        ("portion", {"portion": 0.25}, "got 0.25 instead of 0.2"),
        ("names", {"names": NAMES[:-1]}, "got 11 instead of 12"),
        ("names", {"names": NAMES[::-1]}, "got 'town_2/image 11' instead of 'town_0/image 0' at place 0"),
        ("top_k", {"top_k": 2}, "got 2 instead of 3"),
        ("keep", {"keep": ["soft"]}, "got 'soft' instead of 'confidence' at place 0"),
        ("ignore_index", {"ignore_index": 254}, "got 254 instead of 255"),
        ("classes", {"classes": list("abcde")}, "instead of None"),
        ("palette", {"palette": [(1, 2, 3)] * 5}, r"\[1, 2, 3\] instead of \[128, 0, 0\] at place 0"),
    ]:
        with pytest.raises(
            ValueError, match=f"`{name}`: expected the setting that round 0 was started with, .*{got}; overwrite"
        ):
            write(**arguments)
    assert tree(tmp_path) == before
    writer = write()  # but for `meta`, which stays that of the first attempt
    assert len(writer.missing()) == 9
    assert writer.settings.meta == {}
    writer.close()
    writer = write(thresholds=other, overwrite=True)
    assert len(writer.missing()) == 12
    assert torch.equal(open_store(tmp_path).settings(0).thresholds, other)
    assert not any("labels" in path for path in tree(tmp_path))


def test_num_classes_of_the_round_and_of_the_store(tmp_path):
    write_all(tmp_path)
    from selftrain_seg.store import PseudoLabelStore

    with pytest.raises(
        ValueError, match="`num_classes`: expected the setting that round 0 was started with, got 6 instead of 5"
    ):
        PseudoLabelStore(tmp_path, 6).write(0, NAMES, portion=0.2)
    with pytest.raises(ValueError, match="`num_classes`: expected 5, as round 0 was written with it, got 6"):
        PseudoLabelStore(tmp_path, 6).latest()
    with pytest.raises(ValueError, match="`ignore_index`: expected 255, as round 0 was written with it, got 254"):
        open_store(tmp_path, ignore_index=254).round(0)


def test_overwriting_a_complete_round(tmp_path, quiet):
    write_all(tmp_path, top_k=1)
    with open_store(tmp_path).write(0, NAMES, thresholds=THRESHOLDS, portion=0.2, overwrite=True) as writer:
        assert open_store(tmp_path).rounds() == []
        writer.add(NAMES, joined(NAMES))
        writer.finish()
    assert tree(tmp_path) == quiet


def test_what_is_half_removed_is_not_complete(tmp_path, monkeypatch):
    write_all(tmp_path)

    def failing(*args, **options):
        raise OSError("killed")

    monkeypatch.setattr("selftrain_seg.store._folder.shutil.rmtree", failing)
    with pytest.raises(OSError, match="killed"):
        open_store(tmp_path).write(0, NAMES, overwrite=True)
    assert open_store(tmp_path).rounds() == []


# --- several processes


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers_write(tmp_path, quiet, context):
    with open_store(tmp_path).write(0, NAMES, thresholds=THRESHOLDS, portion=0.2) as writer:
        writer.add(NAMES[:2], joined(NAMES[:2]))  # threads and journal of this process are in use
        processes = workers.by_loader(writer, NAMES[2:], context)
        assert len(processes) == 2
        assert os.getpid() not in processes
        writer.finish()
    assert tree(tmp_path) == quiet


def test_pickled_writer(tmp_path, quiet):
    with open_store(tmp_path).write(0, NAMES, thresholds=THRESHOLDS, portion=0.2) as writer:
        writer.add(NAMES[:4], joined(NAMES[:4]))
        with pickle.loads(pickle.dumps(writer)) as other:  # noqa: S301
            assert other.missing() == NAMES[4:]
            other.add(NAMES[4:], joined(NAMES[4:]))
        writer.finish()
    assert tree(tmp_path) == quiet


def test_processes_without_a_process_group(tmp_path, quiet):
    start(workers.half, str(tmp_path), ranks=2)
    writer = open_store(tmp_path).write(0, NAMES, thresholds=THRESHOLDS, portion=0.2)
    assert writer.missing() == []
    writer.finish()
    assert tree(tmp_path) == quiet


def test_two_ranks_with_workers(tmp_path, quiet):
    begin(tmp_path, 5)
    (tmp_path / f"round-0000/labels/{NAMES[3]}.png").write_bytes(b"damaged")
    write_all(tmp_path, 2, names=["other"])
    start(workers.rank, free_port(), str(tmp_path), ranks=2)
    results = [torch.load(tmp_path / f"rank{index}.pt", weights_only=True) for index in range(2)]
    for result in results:
        assert result["missing"] == [NAMES[3], *NAMES[5:]]
        assert result["workers"] == 2
        assert result["rounds while writing"] == [2]
        assert result["names"] == tuple(NAMES)
        assert result["again"] == []
        assert 2 in result["interrupted"]
        assert result["pruned"] == []
        assert result["left"] == ([0], [])
    assert results[0]["other thresholds"] == ("RuntimeError", "rank 1 failed; see its error message")
    assert results[1]["other thresholds"][0] == "ValueError"
    assert results[0]["bad name"] == ("RuntimeError", "rank 1 failed; see its error message")
    assert "relative paths" in results[1]["bad name"][1]
    assert "round 2 is not complete: 10 of 12 images are missing" in results[0]["incomplete"]
    assert results[1]["incomplete"] == "rank 0 failed; see its error message"
    found = tree(tmp_path)
    assert {path: found[path] for path in found if path.startswith("round-0000/")} == quiet
    assert not any(path.startswith("round-0001/") for path in found)


def test_an_error_in_the_background_is_raised(tmp_path, monkeypatch):
    writer = open_store(tmp_path).write(0, NAMES)

    def full(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr(_files, "write", full)
    writer.add(NAMES[:1], pseudo(NAMES[0]))
    with pytest.raises(OSError, match="disk full"):
        writer.close()
    assert writer.missing() == NAMES
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="not complete: 12 of 12"):
        writer.finish()


def test_an_error_in_the_block_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "digest", None)

    def block():
        with open_store(tmp_path).write(0, NAMES):
            raise KeyError("mine")

    monkeypatch.undo()
    with pytest.raises(KeyError, match="mine"):
        block()
    assert open_store(tmp_path).interrupted() == [0]
