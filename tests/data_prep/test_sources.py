import io
import os
import tarfile

import pytest
from omegaconf import OmegaConf

from data_prep import sources

CONTENT = b'{"a": "x"}\n'


def source(**keys):
    return OmegaConf.create({"folder": "train/set", "files": {"rows": ["new.jsonl", "old*.jsonl"]}, **keys})


def url(path):
    return path.as_uri()  # a download that needs no network


@pytest.fixture
def remote(tmp_path):
    path = tmp_path / "remote" / "file.jsonl"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("repo-1.0/tasks/a.json", "repo-1.0/tasks/b.json", "repo-1.0/README"):
            entry = tarfile.TarInfo(name)
            entry.size = len(CONTENT)
            tar.addfile(entry, io.BytesIO(CONTENT))
    return path


def nothing_left(cache):
    return [path for path in cache.rglob("*") if path.is_dir() and path.name != "raw"] == []


def test_a_role_that_the_config_lacks_is_named(tmp_path):
    (tmp_path / "new.jsonl").write_bytes(CONTENT)
    files = sources.find_files(source(), tmp_path)
    with pytest.raises(ValueError, match=r"source\.files has no role 'test', which its reader asks for; it has rows\."):
        sources.single(files, "test")


def test_a_local_folder_is_used_as_it_is(tmp_path):
    (tmp_path / "train/set").mkdir(parents=True)
    assert sources.locate(source(), tmp_path, tmp_path / "cache") == tmp_path / "train/set"
    assert not (tmp_path / "cache").exists()


def test_a_missing_local_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train/set is not a folder: data=.* must hold train/set"):
        sources.locate(source(), tmp_path, tmp_path)


# finding files


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(CONTENT)


def names(paths):
    return [path.name for path in paths]


def test_the_first_accepted_name_that_exists_is_used(tmp_path):
    touch(tmp_path, "old2.jsonl", "old1.jsonl")
    assert names(sources.find_files(source(), tmp_path)["rows"]) == ["old1.jsonl", "old2.jsonl"]
    touch(tmp_path, "new.jsonl")
    assert names(sources.find_files(source(), tmp_path)["rows"]) == ["new.jsonl"]


def test_of_two_accepted_names_the_log_says_which_is_left_out(tmp_path, caplog):
    touch(tmp_path, "new.jsonl", "old1.jsonl", "old2.jsonl")
    sources.find_files(source(), tmp_path)
    assert f"rows: using new.jsonl in {tmp_path}; left out: old1.jsonl, old2.jsonl" in caplog.text


def test_a_single_candidate_says_nothing(tmp_path, caplog):
    touch(tmp_path, "old1.jsonl")
    sources.find_files(source(), tmp_path)
    assert caplog.text == ""


def test_a_role_without_file_is_named_with_all_accepted_names(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No new\.jsonl or old\*\.jsonl \(rows\) in"):
        sources.find_files(source(), tmp_path)


LEFTOVERS = [
    "._a.json",  # macOS, beside each file on foreign disks and in archives
    ".a.json",
    ".#a.json",  # Emacs' lock
    "#a.json#",
    "a.json~",
    "a.json.part",
    "a.json.crdownload",
    "a.json.bak",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
]


@pytest.mark.parametrize("name", LEFTOVERS)
def test_what_systems_and_editors_leave_behind_is_no_data(tmp_path, caplog, name):
    touch(tmp_path, "tasks/a.json", f"tasks/{name}")
    assert names(sources.listed(tmp_path, "tasks/*")) == ["a.json"]
    assert f"Left out in {tmp_path}: tasks/{name}" in caplog.text


def test_leftovers_in_a_folder_of_an_archive_are_left_out(tmp_path):
    touch(tmp_path, "__MACOSX/a.json", ".ipynb_checkpoints/a.json", "tasks/a.json")
    assert sources.listed(tmp_path, "*/*.json") == [tmp_path / "tasks/a.json"]


def test_folders_and_links_to_nothing_are_left_out(tmp_path, caplog):
    touch(tmp_path, "a.json", "folder.json/a.txt")
    (tmp_path / "link.json").symlink_to(tmp_path / "gone.json")
    (tmp_path / "good.json").symlink_to(tmp_path / "a.json")
    assert names(sources.listed(tmp_path, "*.json")) == ["a.json", "good.json"]
    assert "folder.json, link.json" in caplog.text


def test_many_leftovers_are_counted_not_listed(tmp_path, caplog):
    touch(tmp_path, "a.json", *(f"._{number}.json" for number in range(30)))
    assert names(sources.listed(tmp_path, "*.json")) == ["a.json"]
    assert "and 25 more" in caplog.text


def test_a_whole_name_is_taken_as_it_is(tmp_path, caplog):
    touch(tmp_path, "rows.bak")
    assert names(sources.listed(tmp_path, "rows.bak")) == ["rows.bak"]
    assert sources.listed(tmp_path, "other.bak") == []


def test_only_leftovers_are_no_data(tmp_path):
    touch(tmp_path, "old.jsonl.part", "._old.jsonl")
    with pytest.raises(FileNotFoundError, match=r"No new\.jsonl or old\*\.jsonl \(rows\)"):
        sources.find_files(source(), tmp_path)


def test_a_role_of_one_file_refuses_several(tmp_path):
    touch(tmp_path, "old1.jsonl", "old2.jsonl")
    files = sources.find_files(source(), tmp_path)
    with pytest.raises(
        ValueError, match=r"rows must be one file, but 2 match: old1\.jsonl, old2\.jsonl.*source\.files\.rows"
    ):
        sources.single(files, "rows")


# fingerprints


def test_fingerprints_depend_on_content_and_name_not_on_the_folder(tmp_path):
    prints = []
    for folder, name, content in (("a", "x", b"1"), ("b", "x", b"1"), ("c", "y", b"1"), ("d", "x", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(content)
        prints.append(sources.fingerprint({"rows": [tmp_path / folder / name]}, tmp_path))
    assert prints[0] == prints[1]
    assert prints[0] != prints[2]
    assert prints[0] != prints[3]


def test_a_known_file_is_not_read_again_unless_it_changed(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(CONTENT)
    first = sources.fingerprint({"rows": [path]}, tmp_path)
    read = []
    monkeypatch.setattr(sources, "sha256", lambda path: read.append(path) or "new")
    assert sources.fingerprint({"rows": [path]}, tmp_path) == first
    assert read == []
    os.utime(path, ns=(1, 1))
    assert sources.fingerprint({"rows": [path]}, tmp_path) == {"rows": [["rows.jsonl", "new"]]}
