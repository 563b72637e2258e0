"""Against a checkout of the real open-instruct, named by the environment variable OPEN_INSTRUCT (docs/crosscheck.md).

The outputs are made from the gold answers, so that every rule of parsing and scoring has something to decide. The data
are the micro profile's, and the real benchmarks where the folder of real data is beside the repository.
"""

import itertools
import os
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from data_prep.storage import digest, write_json
from eval import benchmarks, sandbox
from eval.predictions import Store
from eval.session import chosen_items
from scripts.cell.evaluation import load_benchmark
from scripts.config import ROOT, choices, compose
from scripts.original import checkout as original_checkout
from scripts.original.compare import _compared
from scripts.original.ours import Trial
from scripts.original.sets import compare_sets

REAL = ROOT.parent / "shared" / "data"
PROGRAMS = 60  # items whose programs are run
ENDLESS = ("mmlu", "real")  # theirs never ends for a prompt of more than 2,048 bytes, which are this tokenizer's tokens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("OPEN_INSTRUCT" not in os.environ, reason="OPEN_INSTRUCT names no checkout of open-instruct"),
]

TEXTS = (
    lambda gold: gold,
    lambda gold: f" {gold.upper()}.",
    lambda gold: f"So the answer is {gold}.",
    lambda gold: f"[t|The answer is {gold}\n. The answer is ({gold.lower()}). The answer is x.",
    lambda gold: f"tThe answer is {gold}.5, |he answer is 3.",
    lambda gold: f"{gold}\n\nQ: again\nA: {gold}",
    lambda gold: f"1,2,3 {gold},000",
    lambda gold: f"-{gold} or +.5",
    lambda gold: f"The, a AN {gold}, the",
    lambda gold: f"{gold} {gold}\u3000\u00a0{gold[:3]}",
    lambda gold: f"ǅ İ ß ﬁ ٣ ²{gold}",
    lambda gold: "",
    lambda gold: " \n",
    lambda gold: "no",
    lambda gold: f"{gold}\n#x\nprint(1)\nclass A:\n```",
)


def outputs(config, item, number, rng):
    """What a model might have said to an item."""
    if config.get("letters"):
        return [{letter: float(rng.choice((-1, 0, 0.5, 3))) for letter in config["letters"]}]
    gold = item.gold if isinstance(item.gold, str) else item.gold[number % len(item.gold)]
    return [TEXTS[(number + sample) % len(TEXTS)](gold) for sample in range(config.get("samples", 1))]


def made(benchmark, tokenizer, chat, folder):
    """A run that answers every item, but only some where the answers are programs."""
    config = benchmark.config
    items = chosen_items(benchmark, tokenizer, benchmarks.prompting(config, "authors", chat), None)
    rng, answered = random.Random(0), items[:PROGRAMS] if config.get("programs") else items
    path = folder / "run" / "eval" / "made"
    said: dict[str, list] = {}  # a model says the same to the same prompt
    with Store(path) as store:
        for number, item in enumerate(answered):
            said.setdefault(item.prompt, outputs(config, item, number, rng))
            record = {"id": item.id, "task": item.task, "outputs": said[item.prompt]}
            store.add(record | {"prompt": "", "predictions": [], "gold": "", "scores": {}, "notes": []})
    prompts = digest([[item.id, item.prompt, item.gold] for item in items])
    decoding = None if config.get("letters") else {"samples": config.get("samples", 1)}
    metrics = {
        "chat": chat,
        "variant": "authors",
        "limit": None,
        "decoding": decoding,
        "prompts": prompts,
        "average": config["average"],
        "scores": dict.fromkeys(config["columns"], 0.0),
    }
    write_json(path / "metrics.json", metrics)
    return Trial(folder / "run", path, benchmark, tokenizer)


@pytest.fixture(scope="module")
def checkout():
    return original_checkout.checked(os.environ["OPEN_INSTRUCT"], os.environ.get("METRIC_SCRIPTS"))


def settings(where, tmp_path_factory):
    if where == "real" and not REAL.is_dir():
        pytest.skip(f"{REAL} is not here")
    data = f"data={REAL}" if where == "real" else "data=generated"
    sampling = ["evaluation.humaneval.samples=3", "evaluation.humaneval.temperature=0.1"]
    return ["profile=micro", *sampling, data, f"cache_dir={tmp_path_factory.getbasetemp()}"]


CASES = [
    case
    for case in itertools.product(choices("crosscheck/benchmark"), ("generated", "real"), (True, False))
    if case[:2] != ENDLESS
]


@pytest.mark.parametrize(("name", "where", "chat"), CASES)
def test_made_answers_have_the_same_prompts_and_scores(
    name, where, chat, checkout, tiny_checkpoint, tmp_path, tmp_path_factory
):
    cfg = compose(settings(where, tmp_path_factory))
    benchmark = load_benchmark(cfg, name)
    if benchmark.config.get("programs") and sandbox.protection().way == "none":
        pytest.skip(str(sandbox.protection()))
    trial = made(benchmark, AutoTokenizer.from_pretrained(tiny_checkpoint), chat, tmp_path)
    trial.check()
    metrics = os.environ.get("METRIC_SCRIPTS")
    (found,) = _compared([trial], cfg, checkout, metrics and Path(metrics), tmp_path / "work")
    assert found.differences == []
    assert found.items == found.asked == found.same_prompt
    assert found.answered == found.same_score == len(trial.records)
    assert found.said is None or found.said == pytest.approx(found.ours)
    assert min(found.ours.values()) > 0 and max(found.ours.values()) < 100  # some right, some wrong


@pytest.mark.parametrize("where", ["generated", "real"])
def test_training_sets_are_the_same(where, checkout, tmp_path, tmp_path_factory):
    overrides = settings(where, tmp_path_factory)
    found, missing = compare_sets(compose(overrides), overrides, checkout, tmp_path)
    assert missing == []
    assert [each.dataset for each in found] == choices("crosscheck/dataset")
    for each in found:
        assert each.differences == [] and each.ours == each.theirs == each.same > 0
