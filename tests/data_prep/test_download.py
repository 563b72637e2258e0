"""Downloads against a server on this machine: broken connections, busy servers, pages that are no data, archives."""

import gzip
import io
import json
import logging
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from data_prep import download, sources, storage
from data_prep.files import load_json
from tests.data_prep.web import serve

ROOT = Path(__file__).resolve().parents[2]
CHUNK = download.CHUNK
CONTENT = b"".join(b'{"a": "row %d"}\n' % number for number in range(5000))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download, "RETRY", download.RETRY.new(backoff_factor=0))


@pytest.fixture
def web():
    with serve() as server:
        yield server


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def located(cache, *upstream):
    config = {"folder": "train/set", "files": {"rows": ["new.jsonl"]}, "upstream": list(upstream)}
    return sources.locate(OmegaConf.create(config), None, cache)


def entry(url, sha256=None, to="new.jsonl"):
    return {"url": url, "to": to, "sha256": sha256}


def archived(names, **how):
    """A tar.gz of the names, each file with the same content; a name ending in `/` is a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.size = 0 if name.endswith("/") else 4
            tar.addfile(member, io.BytesIO(b"data"))
    return buffer.getvalue()


def folders(cache):
    return sorted(path.name for path in (cache / "raw").iterdir() if path.is_dir())


# files


def test_a_file_is_fetched_once_and_checked(cache, web):
    url = web.add("/file.jsonl", CONTENT)
    pinned = entry(url, to="sub/new.jsonl", sha256=storage.sha256(write(cache.parent / "same", CONTENT)))
    folder = located(cache, pinned)
    assert (folder / "sub/new.jsonl").read_bytes() == CONTENT
    assert located(cache, pinned) == folder
    assert len(web.requests) == 1
    assert folders(cache) == [folder.name]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(cache, web, status):
    url = web.add("/file.jsonl", CONTENT, failures=[status, status])
    assert (located(cache, entry(url)) / "new.jsonl").read_bytes() == CONTENT
    assert len(web.requests) == 3


def test_a_server_that_says_when_to_come_back_is_believed(cache, web):
    url = web.add("/file.jsonl", CONTENT, failures=[429], headers={"Retry-After": "1"})
    start = time.monotonic()
    located(cache, entry(url))
    assert time.monotonic() - start >= 1


def test_waiting_grows_from_attempt_to_attempt_and_ends():
    retry, waits = download.RETRY.new(backoff_factor=0.5), []
    for _ in range(download.RETRY.total):
        retry = retry.increment(error=OSError())
        waits.append(retry.get_backoff_time())
    assert waits == [0, 1, 2, 4, 8, 16]


def test_a_server_that_stays_busy_ends_in_one_sentence(cache, web):
    url = web.add("/file.jsonl", CONTENT, failures=[503] * 99)
    with pytest.raises(ConnectionError, match=rf"Downloading {url} failed .*503.*; check the network.*data=\.\.\."):
        located(cache, entry(url))
    assert len(web.requests) == 1 + download.RETRY.total


def test_a_broken_connection_goes_on_where_it_stopped(cache, web):
    url = web.add("/file.jsonl", CONTENT, cuts=[3 * CHUNK, CHUNK])
    assert (located(cache, entry(url)) / "new.jsonl").read_bytes() == CONTENT
    assert web.asked("Range") == [None, f"bytes={3 * CHUNK}-", f"bytes={4 * CHUNK}-"]
    assert web.asked("If-Range") == [None, '"1"', '"1"']


def test_attempts_that_bring_something_are_not_counted(cache, web):
    url = web.add("/file.jsonl", CONTENT, cuts=[CHUNK] * 8)
    assert (located(cache, entry(url)) / "new.jsonl").read_bytes() == CONTENT
    assert len(web.requests) == 9 > download.RETRY.total


@pytest.mark.parametrize("how", [{"ranges": False}, {"etag": None}, {"etag": 'W/"1"', "ranges": False}])
def test_where_a_part_cannot_be_asked_for_the_file_starts_again(cache, web, how):
    url = web.add("/file.jsonl", CONTENT, cuts=[3 * CHUNK], **how)
    assert (located(cache, entry(url)) / "new.jsonl").read_bytes() == CONTENT


def test_bytes_that_were_packed_on_the_way_are_never_joined(cache, web):
    """The server counts packed bytes, we have unpacked ones: a part of the file cannot be asked for."""
    packed = gzip.compress(CONTENT)
    url = web.add("/file.jsonl", packed, cuts=[len(packed) // 2], headers={"Content-Encoding": "gzip"})
    assert (located(cache, entry(url)) / "new.jsonl").read_bytes() == CONTENT
    assert web.asked("Range") == [None, None]


def test_a_second_run_goes_on_and_keeps_whole_files(cache, web, monkeypatch):
    first, second = web.add("/a", b"whole"), web.add("/b", CONTENT, cuts=[3 * CHUNK])
    both = entry(first, to="a"), entry(second, to="b")
    monkeypatch.setattr(download, "RETRY", download.RETRY.new(total=0))
    with pytest.raises(ConnectionError, match=re.escape(f"{second} failed")):
        located(cache, *both)
    folder = located(cache, *both)
    assert (folder / "b").read_bytes() == CONTENT
    assert [(path, headers.get("Range")) for path, headers in web.requests] == [
        ("/a", None),
        ("/b", None),
        ("/b", f"bytes={3 * CHUNK}-"),
    ]
    assert folders(cache) == [folder.name]


def test_two_versions_of_a_file_are_never_mixed(cache, web, monkeypatch):
    url = web.add("/file.jsonl", CONTENT, cuts=[3 * CHUNK])
    monkeypatch.setattr(download, "RETRY", download.RETRY.new(total=0))
    with pytest.raises(ConnectionError):
        located(cache, entry(url))
    web.add("/file.jsonl", b"new" * 20_000, etag='"2"')
    assert (located(cache, entry(url)) / "new.jsonl").read_bytes() == b"new" * 20_000


@pytest.mark.parametrize("length", [5 * CHUNK, 5 * CHUNK - 1, 1])
def test_a_part_that_is_whole_or_too_long_starts_again(cache, web, monkeypatch, length):
    url = web.add("/file.jsonl", CONTENT, cuts=[5 * CHUNK])
    monkeypatch.setattr(download, "RETRY", download.RETRY.new(total=0))
    with pytest.raises(ConnectionError):
        located(cache, entry(url))
    monkeypatch.undo()
    web.add("/file.jsonl", CONTENT[:length])
    assert (located(cache, entry(url)) / "new.jsonl").read_bytes() == CONTENT[:length]


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/file.jsonl", "file:///etc/hostname", "http://", "htp://x/y"])
def test_an_address_that_gives_nothing_is_one_sentence(cache, address):
    with pytest.raises(ConnectionError, match=rf"Downloading {address} failed .*use a local copy \(data=\.\.\.\)"):
        located(cache, entry(address))


def test_a_bar_shows_size_and_remaining_time(cache, web, capfd):
    located(cache, entry(web.add("/file.jsonl", CONTENT)))
    assert re.search(r"file\.jsonl: 100%.*\d\.?\dk/.*\[\d\d:\d\d<\d\d:\d\d", capfd.readouterr().err)


# what is no data


@pytest.mark.parametrize(
    "body, how",
    [
        (b"<html>Log in</html>", {"kind": "text/html; charset=utf-8"}),
        (b"Please log in", {"kind": "text/html"}),
        (b"\xef\xbb\xbf \n<!DOCTYPE html><html>", {}),
        (b"<HTML><body>", {"kind": "text/plain"}),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code>", {"kind": "application/xml"}),
    ],
)
def test_a_web_page_is_refused_though_no_checksum_is_pinned(cache, web, body, how):
    url = web.add("/file.jsonl", body, **how)
    with pytest.raises(ValueError, match=rf"{url} gave a web page instead of the file.*log-in.*data=\.\.\."):
        located(cache, entry(url))
    web.add("/file.jsonl", CONTENT)
    assert (located(cache, entry(url)) / "new.jsonl").read_bytes() == CONTENT


def test_an_empty_file_is_refused(cache, web):
    with pytest.raises(ValueError, match=r"/file\.jsonl is empty"):
        located(cache, entry(web.add("/file.jsonl", b"")))


def test_a_pointer_to_a_file_in_git_lfs_is_refused(cache, web):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n"
    with pytest.raises(ValueError, match=r"/file\.jsonl is a Git LFS pointer"):
        located(cache, entry(web.add("/file.jsonl", pointer)))


def test_a_wrong_checksum_stops_and_the_next_run_starts_anew(cache, web):
    url = web.add("/file.jsonl", CONTENT)
    found = storage.sha256(write(cache.parent / "same", CONTENT))
    with pytest.raises(ValueError, match=rf"{url} has sha256 {found}, but the config pins 0000"):
        located(cache, entry(url, sha256="0" * 64))
    assert list(cache.rglob("*.jsonl")) == []
    located(cache, entry(url, sha256=found))
    assert len(web.requests) == 2


def test_an_unknown_checksum_is_shown_so_that_it_can_be_pinned(cache, web, caplog):
    with caplog.at_level(logging.WARNING):
        folder = located(cache, entry(web.add("/file.jsonl", CONTENT)))
    assert f"sha256: {storage.sha256(folder / 'new.jsonl')}" in caplog.text


def test_a_checksum_pinned_later_downloads_nothing_but_is_checked(cache, web):
    url = web.add("/file.jsonl", CONTENT)
    folder = located(cache, entry(url))
    assert located(cache, entry(url, sha256=storage.sha256(folder / "new.jsonl"))) == folder
    with pytest.raises(ValueError, match=rf"config pins 0000.*delete the folder {folder} "):
        located(cache, entry(url, sha256="0" * 64))
    assert len(web.requests) == 1


def test_a_reader_that_finds_damage_names_the_folder_to_delete(cache, web):
    folder = located(cache, entry(web.add("/file.json", b'{"a": '), to="new.json"))
    with pytest.raises(ValueError, match=rf"new\.json is truncated or not JSON.*delete the folder {folder} and run"):
        load_json(folder / "new.json")


# access


@pytest.mark.parametrize("status", [401, 403])
def test_a_page_behind_a_log_in_is_one_sentence_and_not_tried_again(cache, web, status):
    url = web.add("/file.jsonl", CONTENT, failures=[status] * 9)
    with pytest.raises(PermissionError, match=rf"{url} is gated.*HTTP {status}.*browser.*data=\.\.\."):
        located(cache, entry(url))
    assert len(web.requests) == 1


@pytest.mark.parametrize("status", [404, 410])
def test_a_page_that_is_gone_is_one_sentence_and_not_tried_again(cache, web, status):
    url = web.add("/file.jsonl", CONTENT, failures=[status] * 9)
    with pytest.raises(FileNotFoundError, match=rf"{url} does not exist.*HTTP {status}.*upstream.*data=\.\.\."):
        located(cache, entry(url))
    assert len(web.requests) == 1


HUB = {"repo": "someone/set", "revision": "abc", "file": "f.jsonl", "to": "new.jsonl", "sha256": None}
PATH = "/datasets/someone/set/resolve/abc/f.jsonl"


@pytest.fixture
def hub(web, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    monkeypatch.setenv("HF_TOKEN", "secret")
    return web


def test_a_hub_file_is_asked_for_at_its_revision_with_the_token(cache, hub):
    hub.add(PATH, CONTENT, cuts=[3 * CHUNK])
    assert (located(cache, HUB) / "new.jsonl").read_bytes() == CONTENT
    assert hub.asked("Authorization") == ["Bearer secret"] * 2


def test_another_server_never_sees_the_token(cache, hub):
    located(cache, entry(hub.add("/file.jsonl", CONTENT)))
    assert hub.asked("Authorization") == [None]


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_set_names_the_token(cache, hub, status):
    hub.add(PATH, CONTENT, failures=[status] * 9)
    sentence = rf"someone/set/f\.jsonl is gated or private.*HTTP {status}.*/datasets/someone/set.*set HF_TOKEN"
    with pytest.raises(PermissionError, match=sentence):
        located(cache, HUB)


# archives


def test_the_top_folder_of_an_archive_becomes_the_folder(cache, web):
    body = archived(["repo-1.0/tasks/a.json", "repo-1.0/tasks/b.json", "repo-1.0/README", "._repo-1.0", "__MACOSX/x"])
    folder = located(cache, {"url": web.add("/archive.tar.gz", body), "sha256": None})
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("[!.]*") if path.is_file())
    assert names == ["README", "tasks/a.json", "tasks/b.json"]


@pytest.mark.parametrize(
    "names, found", [(["a/x", "b/y"], "a, b"), (["x", "y"], "none"), ([], "none"), (["a/", "b/", "c"], "a, b")]
)
def test_an_archive_without_a_single_top_folder_is_one_sentence(cache, web, names, found):
    url = web.add("/archive.tar.gz", archived(names))
    with pytest.raises(ValueError, match=rf"{url} must hold one folder at its top, but holds {found}.*data=\.\.\."):
        located(cache, {"url": url, "sha256": None})
    web.add("/archive.tar.gz", archived(["repo/a"]))
    assert (located(cache, {"url": url, "sha256": None}) / "a").is_file()


DAMAGES = {
    "cut": lambda raw: raw[:-30],
    "flipped": lambda raw: raw[:40] + bytes([raw[40] ^ 255]) + raw[41:],
    "text": lambda raw: b"no archive",
    "zip": lambda raw: b"PK\x03\x04" + b"\0" * 100,
    "packed text": lambda raw: gzip.compress(b"no tar"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_archive_is_one_sentence_and_the_next_run_fetches_it_again(cache, web, damage):
    whole = archived(["repo/" + "".join(map(chr, range(97, 120))) + str(number) for number in range(99)])
    url = web.add("/archive.tar.gz", DAMAGES[damage](whole))
    with pytest.raises(ValueError, match=r"archive\.tar\.gz is not a complete archive \([^\n]*\); try again"):
        located(cache, {"url": url, "sha256": None})
    assert [name for name in folders(cache) if not name.endswith(".parts")] == []
    web.add("/archive.tar.gz", whole)
    assert len(list(located(cache, {"url": url, "sha256": None}).glob("[!.]*"))) == 99


def test_an_archive_that_writes_elsewhere_is_refused(cache, web):
    url = web.add("/archive.tar.gz", archived(["repo/a", "../../outside"]))
    with pytest.raises(ValueError, match=r"is not a complete archive .*outside"):
        located(cache, {"url": url, "sha256": None})
    assert list(cache.parent.rglob("outside")) == []


# interruption

PROGRAM = """
import sys
from pathlib import Path
from omegaconf import OmegaConf
from data_prep import sources
url, cache = sys.argv[1:]
source = {"folder": "train/set", "upstream": [{"url": url, "to": "new.jsonl", "sha256": None}]}
print(sources.locate(OmegaConf.create(source), None, Path(cache)))
"""


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_leaves_no_half_file_and_goes_on(cache, web, sign):
    hang = threading.Event()
    url = web.add("/file.jsonl", CONTENT, cuts=[5 * CHUNK], hang=hang)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, str(cache)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # it is ignored where pytest runs under nohup
    )
    wait_for(lambda: any(path.stat().st_size for path in cache.rglob("*.part")))
    process.send_signal(sign)
    process.wait(20)
    hang.set()
    assert list(cache.rglob("new.jsonl")) == []
    folder = located(cache, entry(url))
    assert (folder / "new.jsonl").read_bytes() == CONTENT
    assert web.asked("Range")[1].startswith("bytes=")
    assert folders(cache) == [folder.name]


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("20 s")


def test_two_processes_share_one_download(cache, web):
    url = web.add("/file.jsonl", CONTENT)
    command = [sys.executable, "-c", PROGRAM, url, str(cache)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=60)[0] for process in both}
    assert len(answers) == len(web.requests) == 1
    assert json.loads((Path(answers.pop().strip()) / storage.DOWNLOADS).read_text(encoding="utf-8")).keys() == {url}
    assert [path.name for path in cache.iterdir()] == ["raw"]
