import hashlib

import pytest

from eval.benchmarks import Prompting, gsm8k
from eval.benchmarks.gsm8k import GSM8K, Question


def test_the_eight_exemplars_byte_for_byte() -> None:
    prefix = gsm8k.prefix(gsm8k.EXEMPLARS).encode()
    assert len(prefix) == 2294
    assert hashlib.sha256(prefix).hexdigest() == "bc98d2864d2c74ae324561ed4fa497c577cd251cc06aeae2c2a23bd5ef60c404"


def test_items_have_eight_shots_and_the_number() -> None:
    raw = GSM8K((Question(" How many? ", "Think.\n#### 1,200 #### 7"),))
    (item,) = gsm8k.items(raw, None, Prompting(chat=False, shots=8))
    assert item.gold == "1200"
    assert item.prompt == gsm8k.prefix(gsm8k.EXEMPLARS) + "Question: How many?\nAnswer:"


@pytest.mark.parametrize(
    ("output", "prediction"),
    [
        ("-3.5 or +.5", "+.5"),
        ("5-.5", "-.5"),
        ("12.", "12"),
        ("1,234,567.89", "1234567.89"),
        ("1,2,3", "3"),  # 12,3
        ("٣ and ١٢", "١٢"),  # any Unicode digit
        ("x1.2.3", ".3"),
        ("  no digit\n", "  no digit\n"),
        ("", ""),
        ("10 %", "10"),
    ],
)
def test_the_last_number(output: str, prediction: str) -> None:
    assert gsm8k.parse(output) == prediction


def test_a_gold_answer_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="needs '####' before its number"):
        gsm8k.gold("42")
