"""What editors and systems leave in a text file changes nothing, and what is no UTF-8 is refused by name."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.files import BrokenRow, Tally, csv_rows, decode, load_json, numbered_lines, usable
from data_prep.text import read_text

MARK = b"\xef\xbb\xbf"
LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])
MARKS = st.integers(0, 2).map(lambda count: count * MARK)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)  # zero bytes: no text


def lines_as(text, end):
    """`text` as a program that ends its lines with `end` saves it."""
    return with_newlines(text).replace("\n", end)


def with_newlines(text):
    return text.replace("\r\n", "\n").replace("\r", "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("text")


def saved(folder, name, content):
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@given(PLAIN.filter(lambda text: not text.startswith("\ufeff")), MARKS, LINE_ENDS)
def test_text_reads_the_same_with_any_mark_and_any_line_end(folder, text, marks, end):
    path = saved(folder, "any.txt", marks + lines_as(text, end).encode())
    assert read_text(path) == with_newlines(text)


@given(
    st.lists(st.dictionaries(TEXT, TEXT, max_size=3), max_size=4),
    MARKS, LINE_ENDS, st.booleans(), st.booleans(), st.sampled_from(["any.jsonl", "any.jsonl.gz"]),
)  # fmt: skip
def test_jsonl_reads_the_same_with_any_mark_and_any_line_end(folder, rows, marks, end, escaped, ended, name):
    """Line ends inside a string are escaped in JSON, so they come back as they were."""
    text = end.join(json.dumps(row, ensure_ascii=escaped) for row in rows) + (end if ended else "")
    path = saved(folder, name, marks + text.encode())
    assert [decode(line) for _, line in numbered_lines(path)] == rows


@given(st.recursive(TEXT, lambda child: st.lists(child, max_size=3) | st.dictionaries(TEXT, child, max_size=3)),
       MARKS, LINE_ENDS, st.booleans())  # fmt: skip
def test_a_json_document_reads_the_same_with_any_mark_and_any_line_end(folder, document, marks, end, escaped):
    text = lines_as(json.dumps(document, ensure_ascii=escaped, indent=1), end)
    assert load_json(saved(folder, "any.json", marks + text.encode())) == document


@given(st.lists(st.lists(PLAIN, min_size=1, max_size=4), max_size=4), MARKS, LINE_ENDS)
def test_csv_reads_the_same_with_any_mark_and_any_line_end(folder, rows, marks, end):
    """A line end inside a quoted cell reads as one newline, whatever the file was saved with."""
    file = io.StringIO(newline="")
    csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    path = saved(folder, "any.csv", marks + lines_as(file.getvalue(), end).encode())
    assert [row for _, row in csv_rows(path)] == [[with_newlines(cell) for cell in row] for row in rows]


def test_csv_places_count_lines(folder):
    path = saved(folder, "placed.csv", b'a,"b\r\nc"\r\nd,e\r\n')
    assert list(csv_rows(path)) == [(f"{path}:2", ["a", "b\nc"]), (f"{path}:3", ["d", "e"])]


@given(st.binary(max_size=80), st.sampled_from(["any.x", "any.gz"]))
def test_any_bytes_are_read_or_refused_in_one_sentence(folder, content, name):
    path = folder / name
    path.write_bytes(content)
    for read in (read_text, load_json, lambda path: list(csv_rows(path)), rows_of):
        try:
            read(path)
        except ValueError as error:
            assert type(error) is ValueError and str(path) in str(error) and str(error).endswith(".")


def rows_of(path: Path):
    return list(usable(numbered_lines(path), decode, Tally()))


READERS = {
    "text": read_text,
    "json": load_json,
    "csv": lambda path: list(csv_rows(path)),
    "jsonl": lambda path: list(numbered_lines(path)),
}
SAMPLE = '{"a": "é"}\n'


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("kind", READERS)
def test_utf_16_and_32_are_refused_by_name(tmp_path, kind, encoding):
    path = saved(tmp_path, "windows.x", SAMPLE.encode(encoding))
    name = encoding.upper()[:6]
    with pytest.raises(ValueError, match=rf"windows\.x is {name} text.*iconv -f {name} -t UTF-8"):
        READERS[kind](path)


@pytest.mark.parametrize("kind", ["text", "json", "csv"])
def test_another_encoding_is_refused(tmp_path, kind):
    path = saved(tmp_path, "old.x", SAMPLE.encode("latin-1"))
    with pytest.raises(ValueError, match=r"old\.x is not UTF-8 text \(byte 0xe9.*save it as UTF-8"):
        READERS[kind](path)


def test_a_file_of_zero_bytes_is_damaged(tmp_path):
    """A machine that lost its power, or a download that reserved its space, leaves such files."""
    with pytest.raises(ValueError, match=r"zero\.json starts with zero bytes, so it is damaged; download"):
        load_json(saved(tmp_path, "zero.json", b"\0" * 100))


def test_a_line_in_another_encoding_is_one_broken_row(tmp_path):
    path = saved(tmp_path, "mixed.jsonl", b'{"a": 1}\n' + SAMPLE.encode("latin-1") + SAMPLE.encode())
    tally = Tally()
    assert list(usable(numbered_lines(path), decode, tally)) == [{"a": 1}, {"a": "é"}]
    assert tally.broken == [f"{path}:2: not UTF-8 text (byte 0xe9)"]


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_file_that_ends_inside_a_character_is_truncated(tmp_path, kind):
    path = saved(tmp_path, "cut.x", b'["\xc3')
    with pytest.raises(ValueError, match=r"cut\.x is truncated: it ends inside a character; download the file again"):
        READERS[kind](path)


DAMAGES = [lambda raw: raw[:-20], lambda raw: raw[:30] + b"\0\0\0\0" + raw[34:], lambda raw: b"<html>"]


@pytest.mark.parametrize("change", DAMAGES)
@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_gzip_file_is_refused(tmp_path, kind, change):
    path = saved(tmp_path, "rows.jsonl.gz", b"".join(b'{"a": "%d"}\n' % i for i in range(1000)))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz is not a complete gzip file"):
        READERS[kind](path)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '{"a": ' * 20_000])
def test_json_that_python_cannot_hold_is_a_broken_row(text):
    with pytest.raises(BrokenRow, match="not valid JSON"):
        decode(text)
