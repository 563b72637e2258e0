import hashlib

import pytest

from eval.benchmarks import Prompting, gsm8k
from eval.benchmarks.gsm8k import GSM8K, Question


def test_the_eight_exemplars_byte_for_byte() -> None:
    prefix = gsm8k.prefix(gsm8k.EXEMPLARS).encode()
    assert len(prefix) == 2294
    assert hashlib.sha256(prefix).hexdigest() == "bc98d2864d2c74ae324561ed4fa497c577cd251cc06aeae2c2a23bd5ef60c404"


def test_items_have_eight_shots_and_the_number() -> None:
    raw = GSM8K((Question(" How many? ", "1200"),))
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


def test_gold_is_the_number_behind_the_first_mark() -> None:
    assert gsm8k.gold("Think.\n#### 1,200 #### 7") == "1200"
    assert gsm8k.gold("#### -3.5") == "-3.5"
    for broken in ("42", "x ####", "x #### , ####"):
        with pytest.raises(ValueError, match="needs '####' and a number"):
            gsm8k.gold(broken)
