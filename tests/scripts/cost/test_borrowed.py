"""A borrowed cache shows what is there, and keeps nothing."""

from pathlib import Path

from data_prep.storage import made_once, write_json
from scripts.cost.borrowed import borrowed


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_what_is_there_is_used_and_what_is_added_disappears(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    made_once(cache / "data" / "old", lambda folder: (folder / "x").write_text("old"))
    write_json(cache / "fingerprints.json", {})
    before = contents(cache)
    with borrowed(cache) as own:
        kept = made_once(own / "data" / "old", lambda folder: (folder / "x").write_text("made again"))
        assert (kept / "x").read_text() == "old"
        made_once(own / "data" / "new", lambda folder: (folder / "x").write_text("new"))
        made_once(own / "micro" / "new", lambda folder: (folder / "x").write_text("new"))
        write_json(own / "fingerprints.json", {"more": 1})
        assert (own / "data" / "new" / "x").read_text() == "new"
    assert contents(cache) == before
    assert not own.exists()


def test_a_cache_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with borrowed(tmp_path / "none") as own:
        assert list(own.iterdir()) == []
    assert not (tmp_path / "none").exists()
