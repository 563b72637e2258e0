import gzip

import pytest

from data_prep.files import (
    BrokenRow,
    Tally,
    csv_rows,
    decode,
    load_json,
    load_rows,
    needed,
    numbered_lines,
    strict,
    texts,
    usable,
)


def test_broken_rows_are_counted_with_their_place_and_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"a": "x"}\n\n{"a": 1}\n{"b": "x"}\nnot json\n[1]\n{"a": "\\ud800"}\n{"a": "y"}\n', encoding="utf-8"
    )
    tally = Tally()
    assert list(usable(numbered_lines(path), lambda line: texts(decode(line), "a"), tally)) == [("x",), ("y",)]
    assert tally.lines == 7
    reasons = {row.split(":")[1]: row for row in tally.broken}
    assert list(reasons) == ["3", "4", "5", "6", "7"]  # line numbers: the blank line counts
    assert reasons["3"] == f"{path}:3: field 'a' must be str, got int"
    assert "field 'a' is missing" in reasons["4"]
    assert "not valid JSON" in reasons["5"]
    assert "a JSON object is needed, got list" in reasons["6"]
    assert "surrogate" in reasons["7"]


def test_lines_end_at_newlines_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"a": "x\u2028y\x85z"}\n'.encode())
    assert [texts(decode(line), "a") for _, line in numbered_lines(path)] == [("x\u2028y\x85z",)]


@pytest.mark.parametrize("ending, complete", [('{"a": "y"}', True), ('{"a": "y', False), ('{"a"', False)])
def test_a_last_line_without_newline_must_be_complete(tmp_path, ending, complete):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "x"}\n' + ending, encoding="utf-8")
    if complete:
        assert len(list(numbered_lines(path))) == 2
    else:
        with pytest.raises(ValueError, match=r"rows.jsonl is truncated: line 2.*download the file again"):
            list(numbered_lines(path))


@pytest.mark.parametrize("ending", ["  ", "\t", "\n\n  "])
def test_a_last_line_of_spaces_is_a_blank_one(tmp_path, ending):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "x"}\n' + ending, encoding="utf-8")
    assert [where for where, _ in numbered_lines(path)] == [f"{path}:1"]


@pytest.mark.parametrize("blank", ["\n", "\r\n"])
def test_blank_lines_of_a_csv_file_are_no_rows(tmp_path, blank):
    path = tmp_path / "rows.csv"
    path.write_bytes(f"{blank}a,b\n{blank}c,\n{blank}".encode())
    assert list(csv_rows(path)) == [(f"{path}:2", ["a", "b"]), (f"{path}:4", ["c", ""])]


def test_a_truncated_gzip_file_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": "x"}\n' * 1000))
    assert len(list(numbered_lines(path))) == 1000
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"rows.jsonl.gz is not a complete gzip file"):
        list(numbered_lines(path))


def test_a_truncated_json_document_is_an_error(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": "x"}, {"a"', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows.json is truncated or not JSON"):
        load_json(path)
    path.write_text('{"a": "x"}', encoding="utf-8")
    with pytest.raises(ValueError, match="must hold one JSON list, got dict"):
        load_rows(path)


def test_strict_reading_stops_at_the_first_broken_row():
    with pytest.raises(ValueError, match=r"^file:2: field 'a' is missing; download the file again\.$"):
        list(strict([("file:1", {"a": "x"}), ("file:2", {})], lambda row: texts(row, "a")))


def test_needed_checks_the_type():
    assert needed({"a": [1]}, "a", list) == [1]
    with pytest.raises(BrokenRow, match="must be list, got str"):
        needed({"a": "x"}, "a", list)


def test_the_share_of_broken_rows():
    tally = Tally(lines=1000, broken=["file:7: bad"])
    tally.check(0.001, "cot")
    tally.broken += [f"file:{line}: bad" for line in range(8, 12)]
    message = r"^5 of 1000 rows of 'cot' are broken.*0.001: file:7: bad; file:8: bad; file:9: bad; \.\.\."
    with pytest.raises(ValueError, match=message):
        tally.check(0.001, "cot")


def test_no_row_at_all_is_an_error():
    with pytest.raises(ValueError, match="'cot' hold no row"):
        Tally().check(0.001, "cot")
