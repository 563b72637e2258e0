"""Golden cases: prompting and scoring, run on single inputs with known results (docs/protocol.md, Golden cases).

python -m eval.golden FILE    prints each case that differs and ends with `N passed, M failed`
"""

import json
import math
import sys
from collections.abc import Callable
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from data_prep.benchmarks import MMLUQuestion
from data_prep.chat import IGNORED, encode, render
from eval import benchmarks
from eval.benchmarks import Item, Settings, bbh, gsm8k, humaneval, mmlu, tydiqa

CONFIGS = Path(__file__).parents[1] / "configs" / "benchmark"


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """What stands under a case's `expected`, from its `benchmark` and `input`. Raises ValueError for an unknown one."""
    kind = case["benchmark"]
    if kind not in CASES:
        raise ValueError(f"There is no golden benchmark '{kind}'; there are {', '.join(CASES)}.")
    return CASES[kind](case["input"])


def _settings(name: str, chat: bool = True, variant: str = "authors") -> Settings:
    evaluation = OmegaConf.load(CONFIGS.parent / "evaluation/default.yaml")  # which the benchmark's keys refer to
    config: Any = OmegaConf.create({"evaluation": evaluation, "benchmark": OmegaConf.load(CONFIGS / f"{name}.yaml")})
    return benchmarks.settings(config.benchmark, variant, chat)


def _judge(name: str, output: Any, gold: Any, extra: dict[str, Any] | None = None) -> tuple[Any, dict[str, float]]:
    """Prediction and scores of one output, as in an evaluation."""
    item = Item(id="golden", task="golden", prompt="", gold=gold, extra=extra or {})
    prediction = benchmarks.predict(name, item, output, _settings(name).stops)
    return prediction, benchmarks.module(name).score(item, [prediction]).scores


def _text_case(name: str, gold_of: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def run(given: dict[str, Any]) -> dict[str, Any]:
        prediction, scores = _judge(name, given.get("output", given.get("letter_logits")), gold_of(given))
        return {"prediction": prediction, "correct": scores[name] == 100.0}

    return run


def _tydiqa(given: dict[str, Any]) -> dict[str, Any]:
    _, scores = _judge("tydiqa", given["output"], given["answers"])
    return {"exact_match": scores["tydiqa_em"], "f1": scores["tydiqa_f1"]}


def _humaneval(given: dict[str, Any]) -> dict[str, Any]:
    completion, scores = _judge("humaneval", given["output"], None, {"problem": given["problem"]})
    return {"completion": completion, "passed": scores["humaneval"] == 100.0}


def _pass_at_k(given: dict[str, Any]) -> dict[str, Any]:
    return {"pass_at_k": humaneval.pass_at_k(given["n"], given["c"], given["k"])}


def _prompt(given: dict[str, Any]) -> dict[str, Any]:
    name = given["prompt_of"]
    settings = _settings(name, given["chat"], given.get("variant", "authors"))
    return {"prompt": PROMPTS[name](given, settings)}


def _mmlu_prompt(given: dict[str, Any], settings: Settings) -> str:
    question, *shots = [MMLUQuestion(**row) for row in (given["item"], *given["shots"])]
    return mmlu.prompt(given["subject"], shots, question, settings)


def _bbh_prompt(given: dict[str, Any], settings: Settings) -> str:
    return bbh.prompt(bbh.direct_shots(given["prompt_file"]), given["item"]["input"], settings)


def _gsm8k_prompt(given: dict[str, Any], settings: Settings) -> str:
    shots = [(shot["question"], shot.get("cot_answer") or shot.get("cot") or shot["answer"]) for shot in given["shots"]]
    return gsm8k.prompt(given["item"]["question"], shots, settings)


def _tydiqa_prompt(given: dict[str, Any], settings: Settings) -> str:
    shots = [tydiqa.Shot(**shot) for shot in given["shots"]]
    return tydiqa.prompt(given["lang"], shots, given["item"]["context"], given["item"]["question"], settings)


def _humaneval_prompt(given: dict[str, Any], settings: Settings) -> str:
    return humaneval.prompt(given["item"]["prompt"], given["item"].get("instruction"), settings)


def _encode(given: dict[str, Any]) -> dict[str, Any]:
    tokenizer = byte_tokenizer()
    encoded = encode(given["messages"], tokenizer, None)
    pairs = list(zip(encoded["input_ids"], encoded["labels"], strict=True))[1:]  # without `<s>`
    runs = groupby(pairs, key=lambda pair: pair[1] != IGNORED)
    pieces = [tokenizer.decode([token for token, _ in run]) for carries_loss, run in runs if carries_loss]
    return {"text": render(given["messages"], tokenizer.eos_token), "labelled": pieces}


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, with `<s>` in front as LLaMA-2 has it: the loss mask does not depend on the vocabulary."""
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


PROMPTS: dict[str, Callable[[dict[str, Any], Settings], str]] = {
    "mmlu": _mmlu_prompt,
    "bbh": _bbh_prompt,
    "gsm8k": _gsm8k_prompt,
    "tydiqa": _tydiqa_prompt,
    "humaneval": _humaneval_prompt,
}
CASES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "mmlu": _text_case("mmlu", lambda given: given["answer"]),
    "bbh": _text_case("bbh", lambda given: given["target"]),
    "gsm8k": _text_case("gsm8k", lambda given: gsm8k.gold(given["answer"])),
    "tydiqa": _tydiqa,
    "humaneval": _humaneval,
    "pass_at_k": _pass_at_k,
    "prompt": _prompt,
    "encode": _encode,
}


def differences(case: dict[str, Any]) -> list[str]:
    """`key: expected ..., got ...` for each expected key that differs; floats may differ by 1e-6."""
    try:
        got = run_case(case)
    except Exception as error:  # a case that cannot be run has failed; the others go on
        return [f"raised {error!r}"]
    return [
        f"{key}: expected {value!r}, got {got.get(key)!r}"
        for key, value in case["expected"].items()
        if not _same(got.get(key), value)
    ]


def _same(got: Any, expected: Any) -> bool:
    if isinstance(expected, float) and isinstance(got, float):
        return math.isclose(got, expected, rel_tol=0, abs_tol=1e-6)
    return bool(got == expected)


def main(path: str) -> int:
    """Runs a file of cases and returns how many failed."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")  # splitlines would also split inside texts
    cases = [json.loads(line) for line in lines if line.strip()]
    failed = {case["id"]: different for case in cases if (different := differences(case))}
    for name, different in failed.items():
        print(f"{name}: {'; '.join(different)}")
    print(f"{len(cases) - len(failed)} passed, {len(failed)} failed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1]) else 0)
