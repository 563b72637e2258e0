import io
import logging
import os
import tarfile

import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from omegaconf import OmegaConf

from data_prep import download, sources, storage

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


# downloads


def test_a_download_is_made_once(tmp_path, remote):
    checked = {"url": url(remote), "to": "sub/new.jsonl", "sha256": storage.sha256(remote)}
    config = source(upstream=[checked])
    folder = sources.locate(config, None, tmp_path / "cache")
    assert (folder / "sub/new.jsonl").read_bytes() == CONTENT
    remote.unlink()
    assert sources.locate(config, None, tmp_path / "cache") == folder


def test_a_wrong_checksum_stops_and_leaves_nothing(tmp_path, remote):
    config = source(upstream=[{"url": url(remote), "to": "new.jsonl", "sha256": "0" * 64}])
    with pytest.raises(ValueError, match=rf"has sha256 {storage.sha256(remote)}, but the config pins 0000"):
        sources.locate(config, None, tmp_path / "cache")
    assert nothing_left(tmp_path / "cache")


def test_an_unknown_checksum_is_shown_so_that_it_can_be_pinned(tmp_path, remote, caplog):
    with caplog.at_level(logging.WARNING):
        sources.locate(source(upstream=[{"url": url(remote), "to": "new.jsonl", "sha256": None}]), None, tmp_path / "c")
    assert f"sha256: {storage.sha256(remote)}" in caplog.text


def test_the_top_folder_of_an_archive_becomes_the_folder(tmp_path, archive):
    folder = sources.locate(source(upstream=[{"url": url(archive), "sha256": None}]), None, tmp_path / "cache")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == ["README", "tasks/a.json", "tasks/b.json"]


def test_a_truncated_archive_stops_and_leaves_nothing(tmp_path, archive):
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"archive.tar.gz is not a complete archive"):
        sources.locate(source(upstream=[{"url": url(archive), "sha256": None}]), None, tmp_path / "cache")
    assert nothing_left(tmp_path / "cache")


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/file.jsonl", "file:///no/such/file.jsonl"])
def test_a_failed_download_says_what_to_do(tmp_path, address):
    config = source(upstream=[{"url": address, "to": "new.jsonl", "sha256": None}])
    with pytest.raises(ConnectionError, match=rf"Downloading {address} failed .*use a local copy \(data=\.\.\.\)"):
        sources.locate(config, None, tmp_path / "cache")
    assert nothing_left(tmp_path / "cache")


HUB = {"repo": "someone/set", "revision": "abc", "file": "f.jsonl", "to": "new.jsonl", "sha256": None}


def test_a_hub_file_is_asked_for_at_its_revision(tmp_path, monkeypatch):
    def fake(filename, local_dir, **where):
        assert (filename, where) == ("f.jsonl", {"repo_id": "someone/set", "repo_type": "dataset", "revision": "abc"})
        (local_dir / filename).write_bytes(CONTENT)
        return str(local_dir / filename)

    monkeypatch.setattr(download, "hf_hub_download", fake)
    folder = sources.locate(source(upstream=[HUB]), None, tmp_path / "cache")
    assert (folder / "new.jsonl").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "raised, expected, text",
    [
        (GatedRepoError, PermissionError, "someone/set/f.jsonl is gated.*set HF_TOKEN"),
        (LocalEntryNotFoundError, ConnectionError, "Downloading someone/set/f.jsonl failed.*check the network"),
    ],
)
def test_hub_errors_are_one_sentence(tmp_path, monkeypatch, raised, expected, text):
    def fake(**_):
        raise raised.__new__(raised, "no")

    monkeypatch.setattr(download, "hf_hub_download", fake)
    with pytest.raises(expected, match=text):
        sources.locate(source(upstream=[HUB]), None, tmp_path / "cache")


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


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    def fill(folder):
        (folder / "half").write_text("x", encoding="utf-8")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"The disk is full at .*; free some space"):
        storage.made_once(tmp_path / "cache" / "target", fill)
    assert nothing_left(tmp_path / "cache")
