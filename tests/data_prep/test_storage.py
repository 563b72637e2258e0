"""Files and folders are whole or absent, whoever else writes them, and a place that cannot be written is named."""

import errno
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep import sources, storage

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


@contextmanager
def as_another_user():
    """A user who owns nothing here. Without this, root may write everywhere."""
    if os.getuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def public():
    """A folder that every user may enter; pytest's own is private."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def fill(folder):
    (folder / "file").write_text("x", encoding="utf-8")


def left(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_folder_is_made_once(tmp_path):
    target = storage.made_once(tmp_path / "cache/target", fill)
    assert storage.made_once(target, None) == target
    assert left(target.parent) == ["target"]


def test_threads_that_ask_at_once_make_it_once(tmp_path):
    calls, ready = [], threading.Barrier(4)

    def ask():
        ready.wait()
        storage.made_once(tmp_path / "target", lambda folder: calls.append(fill(folder)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(calls) == 1


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_what_fails_or_is_stopped_leaves_nothing(tmp_path, error):
    def stop(folder):
        fill(folder)
        raise error

    with pytest.raises(type(error)):
        storage.made_once(tmp_path / "target", stop)
    assert left(tmp_path) == []


def test_a_killed_process_leaves_nothing_that_the_next_one_keeps(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from data_prep.storage import made_once\n"
        "made_once(Path(sys.argv[1]), lambda made: (made.joinpath('half').write_bytes(b'x'), os.kill(os.getpid(), 9)))"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "target"], cwd=ROOT, check=False)
    assert not (tmp_path / "target").exists()
    assert left(storage.made_once(tmp_path / "target", fill)) == ["file"]
    assert left(tmp_path) == ["target"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, code):
    def full(folder):
        fill(folder)
        raise OSError(code, os.strerror(code))

    with pytest.raises(OSError, match=r"The disk is full at .*\. Free some space and run the same command again\."):
        storage.made_once(tmp_path / "cache/target", full)
    assert left(tmp_path / "cache") == []


def test_a_full_disk_is_recognised_by_text_or_by_what_is_left(tmp_path, monkeypatch):
    with pytest.raises(OSError, match=f"The disk is full at {tmp_path}"), storage.full_disk_named(tmp_path):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="another reason"), storage.full_disk_named(tmp_path):
        raise RuntimeError("another reason")
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="The disk is full"), storage.full_disk_named(tmp_path):
        raise RuntimeError("unexpected pos 64 vs 0")


def test_a_full_disk_is_looked_for_where_the_folder_will_be(tmp_path, monkeypatch):
    for folder in (tmp_path / "not/made", Path("not_made_either")):
        with pytest.raises(RuntimeError, match="another reason"), storage.full_disk_named(folder):
            raise RuntimeError("another reason")
    asked = []
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=0))
    with (
        pytest.raises(OSError, match=r"The disk is full at .*/not/made"),
        storage.full_disk_named(tmp_path / "not/made"),
    ):
        raise RuntimeError("another reason")
    assert asked == [tmp_path]


def test_a_folder_made_by_another_user_is_used_though_nothing_can_be_written(public):
    target = storage.made_once(public / "cache/target", fill)
    target.parent.chmod(0o555)
    with as_another_user():
        assert storage.made_once(target, None) == target
        assert (target / "file").read_text(encoding="utf-8") == "x"


def test_a_place_that_cannot_be_written_is_named(public):
    public.chmod(0o555)
    with (
        as_another_user(),
        pytest.raises(PermissionError, match=r"cannot be written; set cache_dir to a folder of your"),
    ):
        storage.made_once(public / "target", fill)


@pytest.mark.parametrize("place", ["/proc/none/cache", "/dev/null/cache"])
def test_a_place_that_cannot_be_made_is_named(place):
    with pytest.raises(OSError, match=rf"{place} cannot be made \(.*\); set cache_dir to a folder of your own\."):
        storage.made_once(Path(place, "target"), fill)


def test_a_lock_of_another_user_can_be_taken(public):
    target = storage.made_once(public / "target", fill)
    (target / "file").unlink()
    target.rmdir()
    public.chmod(0o777)
    with as_another_user():
        storage.made_once(target, fill)


def test_a_file_written_at_once_by_two_threads_is_one_of_the_two(tmp_path):
    path, texts = tmp_path / "file", ["a" * 100_000, "b" * 100_000]
    threads = [threading.Thread(target=lambda t=t: [storage.write_text(path, t) for _ in range(50)]) for t in texts]
    [thread.start() for thread in threads]
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_text(encoding="utf-8") in texts
    assert left(tmp_path) == ["file"]


def test_text_is_utf_8_in_any_locale(tmp_path):
    program = (
        "import sys; from pathlib import Path; from data_prep.storage import write_text\n"
        "write_text(Path(sys.argv[1]), '\\u2020\\xe9')"
    )
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", program, tmp_path / "file"], cwd=ROOT, env=env, check=True)
    assert (tmp_path / "file").read_bytes() == "†é".encode()


def test_a_cache_that_cannot_be_written_costs_a_second_reading_only(public, caplog):
    rows = public / "rows.jsonl"
    rows.write_text("{}", encoding="utf-8")
    public.chmod(0o555)
    with as_another_user():
        prints = sources.fingerprint({"rows": [rows]}, public)
    assert prints == {"rows": [["rows.jsonl", storage.sha256(rows)]]}
    assert f"{public / 'fingerprints.json'} cannot be written" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]"])
def test_a_damaged_memory_of_checksums_is_made_anew(tmp_path, content):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}", encoding="utf-8")
    (tmp_path / "fingerprints.json").write_bytes(content)
    assert sources.fingerprint({"rows": [rows]}, tmp_path) == {"rows": [["rows.jsonl", storage.sha256(rows)]]}


def kill_after(renames: int, patched: pytest.MonkeyPatch) -> None:
    """End like a kill in the rename after so many."""
    left = [renames]

    def counted(real):
        def rename(*args):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(*args)

        return rename

    patched.setattr(os, "rename", counted(os.rename))
    patched.setattr(os, "replace", counted(os.replace))


@pytest.mark.parametrize("left", [0, 1])
def test_a_kill_while_a_folder_is_replaced_loses_nothing(tmp_path, monkeypatch, left):
    """left: renames that are done before the kill. Between the two, the old content has another name."""
    path = tmp_path / "made"
    with storage.new_folder(path) as folder:
        (folder / "part").write_text("old")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), storage.new_folder(path) as folder:
        (folder / "part").write_text("new")
        kill_after(left, patched)
    assert path.exists() == (left == 0)
    with pytest.raises(RuntimeError), storage.new_folder(path):
        raise RuntimeError("broken")
    assert (path / "part").read_text() == "old"
    with storage.new_folder(path) as folder:
        (folder / "part").write_text("newer")
    assert (path / "part").read_text() == "newer"
    assert list(tmp_path.iterdir()) == [path]
