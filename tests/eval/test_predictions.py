import json
import logging
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from eval.predictions import Store, read

TEXTS = ["plain", "line\nbreak\r\n", "日本語 \u2028 \x85 \x00", 'quote " and \\', ""]


def row(name: object) -> dict:
    return {"id": str(name), "outputs": TEXTS, "scores": {"x": 1 / 3}}


def filled(folder: Path, count: int = 5) -> Path:
    with Store(folder) as store:
        for i in range(count):
            store.add(row(i))
    return store.path


def test_rows_come_back_as_they_were_added(tmp_path: Path) -> None:
    path = filled(tmp_path / "new" / "folder")
    assert read(path) == {str(i): row(i) for i in range(5)}
    with Store(path.parent) as store:
        assert store.records == read(path)
        store.add(row(5))
    assert list(read(path)) == list("012345")


def test_no_item_twice(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with Store(tmp_path) as store, pytest.raises(ValueError, match="Item '3' is already in"):
        store.add(row(3))
    assert len(read(path)) == 5


@pytest.mark.parametrize("kept", [0, 1, -1, -3])
def test_a_cut_tail_is_left_out_and_set_aside(tmp_path: Path, kept: int, caplog: pytest.LogCaptureFixture) -> None:
    path = filled(tmp_path)
    content = path.read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1  # of the last line
    path.write_bytes(content[:start] + content[start:][:kept] if kept >= 0 else content[:kept])
    damaged = path.read_bytes()
    with caplog.at_level(logging.WARNING), Store(tmp_path) as store:
        assert list(store.records) == list("0123")
        store.add(row(4))
    assert read(path) == {str(i): row(i) for i in range(5)}
    aside = tmp_path / "predictions.jsonl.corrupt"
    assert aside.exists() == (kept != 0)  # an absent line is no damage
    if kept:
        assert aside.read_bytes() == damaged
        assert f"{path}: line(s) 5 damaged" in caplog.text


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = filled(tmp_path)
    content = path.read_bytes()
    draw = random.Random(0)
    for trial in range(200):
        at = draw.randrange(len(content))
        changed = content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]
        path.write_bytes(changed)
        for name, found in read(path).items():
            assert found == row(name), trial
        assert len(read(path)) < 5


def test_garbage_and_doubles_are_named_and_every_damaged_file_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = filled(tmp_path, 2)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"\xff\xfe\n" + lines[0] + lines[0] + b"[1]\n" + b'{"id": "7"}\n' + lines[1])
    with Store(tmp_path) as store:
        assert store.records == {"0": row(0), "1": row(1)}
    assert "line(s) 1, 3, 4, 5 damaged" in caplog.text
    assert path.read_bytes() == b"".join(lines)
    path.write_bytes(lines[0] + b"x")
    with Store(tmp_path):
        pass
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["predictions.jsonl", "predictions.jsonl.corrupt", "predictions.jsonl.corrupt1"]


def test_two_evaluations_cannot_write_to_one_folder(tmp_path: Path) -> None:
    with (
        Store(tmp_path),
        pytest.raises(BlockingIOError, match="is being written by another evaluation"),
        Store(tmp_path),
    ):
        pass
    with Store(tmp_path):
        pass


def _write_for_ever(folder: Path) -> None:
    with Store(folder) as store:
        for i in range(len(store.records), 10**9):
            store.add(row(i))


def test_a_kill_at_any_moment_loses_no_finished_line(tmp_path: Path) -> None:
    seen = 0
    for delay in (0.05, 0.1, 0.15):
        process = multiprocessing.get_context("spawn").Process(target=_write_for_ever, args=(tmp_path,))
        process.start()
        deadline = time.monotonic() + 60
        while len(_ids(tmp_path)) <= seen and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delay)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        ids = _ids(tmp_path)
        assert ids == list(map(str, range(len(ids))))
        assert len(ids) > seen
        seen = len(ids)


def _ids(folder: Path) -> list[str]:
    path = folder / "predictions.jsonl"
    return list(read(path)) if path.exists() else []


def test_lines_are_plain_json(tmp_path: Path) -> None:
    first = json.loads(filled(tmp_path).read_bytes().split(b"\n")[0])
    assert first.pop("checksum")
    assert first == row(0)
