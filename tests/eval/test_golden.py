import json
from pathlib import Path

import pytest

from data_prep.chat import encode
from eval import golden

FILE = Path(__file__).with_name("golden_scores.jsonl")
CASES = [json.loads(line) for line in FILE.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_golden(case: dict) -> None:
    assert golden.differences(case) == []


def test_every_kind_of_case_is_there() -> None:
    assert {case["benchmark"] for case in CASES} == set(golden.kinds())


def test_a_file_of_cases_is_run_and_what_differs_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        {
            "id": "good",
            "benchmark": "gsm8k",
            "input": {"output": "3\u2028", "answer": "#### 3"},
            "expected": {"correct": True},
        },
        {
            "id": "bad",
            "benchmark": "gsm8k",
            "input": {"output": "4", "answer": "#### 3"},
            "expected": {"prediction": "3"},
        },
        {
            "id": "broken",
            "benchmark": "gsm8k",
            "input": {"output": "4", "answer": "3"},
            "expected": {"prediction": "4"},
        },
    ]
    file = tmp_path / "cases.jsonl"
    file.write_text("\n".join(json.dumps(case, ensure_ascii=False) for case in cases), encoding="utf-8")
    assert golden.main(str(file)) == 2
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "bad: prediction: expected '3', got '4'"
    assert printed[1].startswith("broken: raised BrokenRow")
    assert printed[2] == "1 passed, 2 failed"


def test_floats_may_differ_a_little_and_texts_may_not() -> None:
    case = {"benchmark": "pass_at_k", "input": {"n": 3, "c": 1, "k": 1}}
    assert golden.differences({**case, "expected": {"pass_at_k": 0.3333335}}) == []
    assert golden.differences({**case, "expected": {"pass_at_k": 0.333336}}) != []


@pytest.mark.parametrize(
    ("max_length", "labelled"),
    [(None, "Hello</s>"), (33, "Hello</s>"), (32, "Hello"), (30, "Hel"), (27, ""), (5, "")],
)
def test_a_truncated_reply_keeps_its_loss_and_loses_its_end(max_length: int | None, labelled: str) -> None:
    tokenizer = golden.byte_tokenizer()
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    encoded = encode(messages, tokenizer, max_length)  # 27 tokens up to the reply
    assert tokenizer.decode([label for label in encoded["labels"] if label != -100]) == labelled


@pytest.mark.parametrize(
    ("roles", "labelled"),
    [
        ("a", ["<|assistant|>\n0</s>"]),
        ("au", ["<|assistant|>\n0</s>\n"]),
        ("uaa", ["1</s>\n<|assistant|>\n2</s>"]),
        ("uaua", ["1</s>\n", "3</s>"]),
        ("sau", ["1</s>\n"]),
        ("su", []),
    ],
)
def test_what_carries_loss_in_other_orders_of_roles(roles: str, labelled: list[str]) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    messages = [{"role": names[role], "content": f" {i} "} for i, role in enumerate(roles)]
    assert golden.run_case({"benchmark": "encode", "input": {"messages": messages}})["labelled"] == labelled


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="no golden benchmark 'squad'"):
        golden.run_case({"benchmark": "squad", "input": {}})
