"""The micro profile's generators: the readers of the original files read them, and no test problem was trained on."""

import gzip
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from data_prep.micro import VERSION, generate, key
from data_prep.micro.functions import LINES
from data_prep.micro.split import Problem, distinct, side
from data_prep.micro.tokenizer import build
from data_prep.micro.words import changed
from data_prep.micro.world import World
from data_prep.prepare import prepare
from data_prep.sources import GENERATED, find_files
from eval import benchmarks

TRAINING_SETS = ("super_ni", "flan_v2", "cot", "code_alpaca")
PROSE = {"inputs", "targets", "instruction", "input", "output", "Definition", "Positive Examples", "Instances"}
ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
# sha256 of the files of seed 0 and of the pretraining text, by micro.VERSION
FILES = {1: "880f5689ff7d6bae0630700fc07b34f0b28f2d679dd2da7570c67beaa0caf5b0"}
PRETRAINING = {1: "1ef7dbdd3c2122403d77b3509a3ac65d3221afab81a309756db0dec28adf301d"}


def asked(name, root):
    """What a benchmark reads of generated files."""
    found = OmegaConf.load(CONFIGS / "benchmark" / f"{name}.yaml")
    return benchmarks.module(found).load(find_files(found.source, root / found.source.folder))


def content(root):
    """One sha256 over all files below `root`; gzip files unpacked, since zlib's versions compress differently."""
    whole = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        whole.update(f"{path.relative_to(root).as_posix()} {hashlib.sha256(raw).hexdigest()}\n".encode())
    return whole.hexdigest()


def pretraining_text():
    world, rng = World(0), random.Random(0)
    return "\n".join([world.document(rng) for _ in range(1000)] + world.wording(rng))


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def root(cache):
    return generate(cache, seed=0)


@pytest.fixture(scope="session")
def tokenizer():
    return build(World(0).wording(random.Random(0)))


@pytest.fixture(scope="session")
def trained_on(root):
    """All text of the training files, as JSON unpacked it."""

    def strings(node):
        if isinstance(node, str):
            yield node
        children = (
            [node[k] for k in node if k in PROSE] if isinstance(node, dict) else node if isinstance(node, list) else []
        )
        for child in children:
            yield from strings(child)

    files = list((root / "train").rglob("*.json*"))
    lines = [
        path.read_text("utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")] for path in files
    ]
    return "\n\n".join(text for file in lines for line in file for text in strings(json.loads(line)))


@pytest.mark.parametrize("name", TRAINING_SETS)
def test_the_readers_of_the_original_files_read_the_training_sets(name, cache, tokenizer):
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        dataset = hydra.compose("config", ["profile=micro", f"dataset={name}"]).dataset
    prepared = prepare(dataset, tokenizer, data=GENERATED, max_length=256, validation_size=64, cache_dir=cache)
    report = prepared.report
    assert report["broken"] == report["dropped"] == report["truncated"] == 0
    assert len(prepared.train) > 600  # half of what a run sees, or more
    assert tokenizer.convert_tokens_to_ids("<0x61>") not in prepared.train[0]["input_ids"]


def test_every_test_item_is_new(root, trained_on):
    questions = ["\n".join([q.question, *(f"{letter}. {c}" for letter, c in zip("ABCD", q.choices, strict=True))])
                 for subject in asked("mmlu", root).test.values() for q in subject]  # fmt: skip
    questions += [f"Q: {example.input}" for task in asked("bbh", root).tasks.values() for example in task.examples]
    questions += [question.question for question in asked("gsm8k", root).test]
    questions += [problem.prompt for problem in asked("humaneval", root).problems]
    assert len(questions) == len(set(questions)) > 400
    assert [question for question in questions if question in trained_on] == []
    passages = trained_on.replace("\n", " ")
    for item in asked("tydiqa", root).dev:
        assert f"{item.context} {item.question}" not in passages


def test_training_and_test_questions_look_alike(root, trained_on):
    """The check above would also pass if the two had nothing in common."""
    problem = asked("gsm8k", root).test[0].question
    words = set(problem.replace(".", " ").replace("?", " ").split())
    assert all(word in trained_on for word in words)
    dev = asked("mmlu", root).dev
    assert all(question.answer in "ABCD" for questions in dev.values() for question in questions)


def test_gold_answers_are_right(root):
    for problem in asked("humaneval", root).problems:
        scope = {}
        exec(f"{problem.prompt}{problem.canonical_solution}\n{problem.test}\ncheck({problem.entry_point})", scope)
    for row in map(json.loads, (root / "eval/gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()):
        steps, _, answer = row["answer"].partition("\n#### ")
        assert all(eval(step.split("<<")[1].split("=")[0]) == int(step.split(">>")[1]) for step in steps.split("\n"))
        assert steps.endswith(f">>{answer}")
    for item in asked("tydiqa", root).dev:
        assert all(answer in item.context for answer in item.answers)


def test_three_scripts_and_more(root):
    languages = {item.language for item in asked("tydiqa", root).dev}
    assert languages == {"arabic", "english", "korean", "russian"}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(root, tmp_path):
    again, other = generate(tmp_path, seed=0), generate(tmp_path, seed=1)
    names = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert all((root / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert not all((root / name).read_bytes() == (other / name).read_bytes() for name in names)
    assert again.name == key(0) != other.name


CHANGED = "the generators write other text than under VERSION {}: raise data_prep.micro.VERSION and pin the new sha256"


def test_the_files_change_only_with_the_version(root):
    assert content(root) == FILES[VERSION], CHANGED.format(VERSION)


def test_the_pretraining_text_changes_only_with_the_version():
    assert hashlib.sha256(pretraining_text().encode()).hexdigest() == PRETRAINING[VERSION], CHANGED.format(VERSION)


def test_the_files_depend_neither_on_the_order_of_sets_nor_on_the_locale(tmp_path):
    program = f"from data_prep.micro.files import write; from pathlib import Path; write(Path({str(tmp_path)!r}), 0)"
    env = os.environ | {"PYTHONHASHSEED": "77", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, check=True)
    assert content(tmp_path) == FILES[VERSION]


def test_keys_follow_the_version_and_the_parts(monkeypatch):
    assert key(0) == key(0) and re.fullmatch("[0-9a-f]{16}", key(0))
    assert len({key(), key(0), key(1), key("0"), key(0, "text")}) == 5
    before = key(0)
    monkeypatch.setattr("data_prep.micro.VERSION", VERSION + 1)
    assert key(0) != before


def test_the_pretraining_text_holds_no_chat_and_speaks_no_dialect():
    world, rng = World(0), random.Random(0)
    text = "\n".join(world.document(rng) for _ in range(2000))
    assert not [mark for mark in ("<|user|>", "<|assistant|>", "Question:", "Q:") if mark in text]
    functions = re.findall(r"Do (\w+), then (\w+)\.\"\"\"\n    (.*)\n    (.*)\n", text)
    translations = re.findall(r"Translate: (\w+ \w+)\nA: (\w+ \w+)\.", text)
    assert len(functions) > 100 and len(translations) > 100
    for first, second, line, other in functions:
        assert (world.functions.plain[first], world.functions.plain[second]) == (line, other)
    for words, others in translations:
        assert [world.logic.plain.words[word] for word in words.split()] == others.split()


def meanings(world):
    """Every pair of plain meaning and dialect."""
    families = [world.functions, world.arithmetic]
    pairs = [(family.plain, family.dialect) for family in families]
    pairs += list(zip(vars(world.logic.plain).values(), vars(world.logic.dialect).values(), strict=True))
    for family in (world.facts, world.passages):
        pairs += [(family.plain[group], family.dialect[group]) for group in family.plain]
    return pairs


@pytest.mark.parametrize("seed", range(5))
def test_the_dialect_changes_half_of_the_words_and_no_meaning_is_lost(seed):
    for plain, dialect in meanings(World(seed)):
        assert plain.keys() == dialect.keys()
        assert Counter(map(str, plain.values())) == Counter(map(str, dialect.values()))
        assert len(changed(plain, dialect)) == (len(plain) + 1) // 2


def test_benchmarks_ask_only_for_what_the_dialect_changed():
    world, rng = World(0), random.Random(0)
    new = changed(world.functions.plain, world.functions.dialect)
    asked = {
        word
        for _ in range(1000)
        for word in re.findall(r"Do (\w+), then (\w+)", world.functions.question(rng).question)[0]
    }
    taught = {
        word
        for _ in range(1000)
        for word in re.findall(r"Do (\w+), then (\w+)", world.functions.lesson(rng).question)[0]
    }
    assert asked == set(new) < taught == set(world.functions.plain)


def test_words_of_all_families_are_different():
    world = World(0)
    words = [word for plain, _ in meanings(world) for word in plain]
    words += [word for language in world.passages.people.values() for word in language]
    assert len(words) == len(set(words))
    assert set(world.functions.plain.values()) == set(LINES)


def test_a_family_that_is_too_small_is_an_error():
    with pytest.raises(ValueError, match="only 0 different test problems"):
        distinct(
            lambda rng: Problem(next(q for q in map(str, range(99)) if side(q) == "train"), "", ""), "test", 2, random
        )


@pytest.mark.parametrize(
    "text", ["The answer is  A", "a b\n\n    return x + 3\n", "Ответ: да. 서울, مصر", "naïve €5", " x  "]
)
def test_the_tokenizer_loses_nothing(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_words_of_the_files_are_single_pieces(tokenizer, trained_on):
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(trained_on[: trained_on.index("\n\n", 20000)]).input_ids)
    assert not [piece for piece in pieces if piece.startswith("<0x")]
