"""Golden cases: the prompts and scores of single inputs whose results were obtained with the original evaluation code.

python -m eval.golden FILE    prints each case that differs and ends with `N passed, M failed`

FILE has a JSON object {"id", "benchmark", "input", "expected"} a line. `benchmark` is a benchmark's name (an output is
scored), "prompt" (of the benchmark in `prompt_of`), "encode" (the chat format of training), or a kind that a module of
eval/benchmarks lists in its GOLDEN. A benchmark that has no golden cases lacks `golden` and `golden_prompt`.
"""

import json
import math
import sys
from collections.abc import Callable
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from data_prep.chat import IGNORED, encode, render
from data_prep.text import read_text
from eval import benchmarks
from eval.benchmarks import CONFIGS, Item

Case = dict[str, Any]


def kinds() -> dict[str, Callable[[Case], Case]]:
    """{kind: function of a case's `input`}. The function returns at least the keys of the case's `expected`."""
    found: dict[str, Callable[[Case], Case]] = {"prompt": _prompt, "encode": _encode}
    for name in benchmarks.names():
        module = benchmarks.module(_config(name))
        if hasattr(module, "golden"):
            found[name] = partial(module.golden, judge=partial(_judge, name))
        found |= getattr(module, "GOLDEN", {})
    return found


def run_case(case: Case) -> Case:
    """What a case's `input` gives. Raises ValueError for an unknown kind in its `benchmark`."""
    kind, known = case["benchmark"], kinds()
    if kind not in known:
        raise ValueError(f"There is no golden benchmark '{kind}'; there are {', '.join(known)}.")
    return known[kind](case["input"])


@cache
def _config(name: str) -> Any:
    evaluation = OmegaConf.load(CONFIGS.parent / "evaluation/default.yaml")  # the benchmark's yaml refers to it
    return OmegaConf.create({"evaluation": evaluation, "benchmark": OmegaConf.load(CONFIGS / f"{name}.yaml")}).benchmark


def _judge(name: str, output: Any, gold: Any, extra: Case | None = None) -> tuple[Any, tuple[float, ...]]:
    """Prediction and scores of one output, as in an evaluation."""
    config = _config(name)
    item = Item(id="golden", task="golden", prompt="", gold=gold, extra=extra or {})
    prediction = benchmarks.predict(config, item, output, benchmarks.prompting(config, "authors", chat=True).stops)
    return prediction, benchmarks.module(config).score(item, [prediction]).scores


def _prompt(given: Case) -> Case:
    config = _config(given["prompt_of"])
    prompting = benchmarks.prompting(config, given.get("variant", "authors"), given["chat"])
    return {"prompt": benchmarks.module(config).golden_prompt(given, prompting)}


def _encode(given: Case) -> Case:
    tokenizer = byte_tokenizer()
    encoded = encode(given["messages"], tokenizer, None)
    pairs = list(zip(encoded["input_ids"], encoded["labels"], strict=True))[1:]  # without `<s>`
    runs = groupby(pairs, key=lambda pair: pair[1] != IGNORED)
    pieces = [tokenizer.decode([token for token, _ in run]) for carries_loss, run in runs if carries_loss]
    return {"text": render(given["messages"], tokenizer.eos_token), "labelled": pieces}


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and `<s>` in front as with LLaMA-2. The loss mask does not depend on the vocabulary."""
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def differences(case: Case) -> list[str]:
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
    lines = read_text(Path(path)).split("\n")  # splitlines would also split inside texts
    cases = [json.loads(line) for line in lines if line.strip()]
    failed = {case["id"]: different for case in cases if (different := differences(case))}
    for name, different in failed.items():
        print(f"{name}: {'; '.join(different)}")
    print(f"{len(cases) - len(failed)} passed, {len(failed)} failed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1]) else 0)
