"""The documentation is true: its links, places, commands and citations exist; the protocol is what the code does."""

import hashlib
import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from data_prep.chat import REPLY_HEADER
from data_prep.readers import templates
from eval.benchmarks import Prompting, gsm8k, humaneval, mmlu, tydiqa

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, *sorted(ROOT.glob("*.md")), ROOT / "requirements/README.md"]
PACKAGES = ("mos", "mos_vllm", "data_prep", "eval", "scripts", "tests")
CODE = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py") if path != Path(__file__)]
FOLDERS = "mos|mos_vllm|data_prep|eval|scripts|configs|docs|tests|results|requirements|\\.github"
MADE = re.compile(  # what a user makes, or an example adds, and what is no place
    r"results/(?!printed|published)|eval/loss|configs/[a-z/]*(ours|mos_r64|arc_easy|dolly)"
)


def by_page(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page):
    """The text without fenced code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def headings(page):
    return re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)


def anchor(heading):
    """As mkdocs and GitHub make them."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-")


@by_page(PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, fragment = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if fragment:
            assert fragment in map(anchor, headings(linked)), target


@by_page(PAGES)
def test_places_exist(page):
    if page.name == "CHANGELOG.md":
        return  # it speaks of places as they were
    for place in re.findall(rf"`((?:{FOLDERS})/[\w./*-]*)`", prose(page)):
        if not MADE.match(place):
            assert list(ROOT.glob(place.rstrip("/"))), place


@by_page(PAGES)
def test_commands_exist(page):
    targets = re.findall(r"^([a-z0-9 -]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"python -m ((?:scripts|eval|data_prep)[\w.]*)", text):
        assert (ROOT / (module.rstrip(".").replace(".", "/") + ".py")).is_file(), module
    for target in re.findall(r"(?:`|^)make ([a-z][a-z0-9-]*)", text, flags=re.MULTILINE):
        assert target in " ".join(targets).split(), target


@by_page(DOCS)
def test_every_page_opens_with_what_it_is_good_for(page):
    opening = re.split(r"^#", prose(page).split("\n", 1)[1], flags=re.MULTILINE)[0].strip()
    assert len(opening.split()) >= 8 or page.name == "api.md"


def test_the_site_has_every_page_once():
    (listed,) = re.findall(r"^nav:\n(.*)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.M | re.S)
    pages = [page for entry in yaml.safe_load(listed) for page in pages_of(entry)]
    assert sorted(pages) == [page.name for page in DOCS]


def pages_of(entry):
    """The pages of an entry of the navigation, which may be a list under a title."""
    (content,) = entry.values()
    return [content] if isinstance(content, str) else [page for inner in content for page in pages_of(inner)]


def citations(text):
    """`(page, section)` of each "docs/PAGE.md, Section name" in a docstring or a comment."""
    return re.findall(r"docs/([\w-]+)\.md, ([A-Z][\w -]*\w)", text)


def test_citations_are_found():
    assert citations('"""X (docs/protocol.md, TyDi QA)."""') == [("protocol", "TyDi QA")]


def test_cited_sections_exist():
    cited = {citation for path in CODE for citation in citations(path.read_text(encoding="utf-8"))}
    assert ("protocol", "Chat format") in cited
    for page, section in cited:
        assert section in headings(ROOT / f"docs/{page}.md"), (page, section)


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_section_is_cited_by_a_letter(path):
    assert not re.search(r"protocol,? sections? [a-g]\b", path.read_text(encoding="utf-8"))


PROTOCOL = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")


def section(title):
    """The text under a heading of the protocol, up to the next heading."""
    (text,) = re.findall(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PROTOCOL, flags=re.MULTILINE | re.DOTALL)
    return text


def rows(text):
    """The cells of the tables' lines, headers and rules left out; code marks stay."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    rules = {i for i, line in enumerate(lines) if set("".join(line)) <= {"-"}}
    return [line for i, line in enumerate(lines) if i not in rules and i + 1 not in rules]


def literal(cell):
    return cell.strip("`").replace("⏎", "\n")


def test_the_templates_are_the_codes():
    slots = {"{i}": "{instruction}", "{x}": "{input}"}
    printed = [(float(weight), literal(text)) for weight, text in rows(section("Templates"))]
    code = [(t.weight, t.prompt) for t in (*templates.WITH_INPUT, *templates.WITHOUT_INPUT)]
    assert [(w, re.sub(r"\{[ix]\}", lambda slot: slots[slot.group()], text)) for w, text in printed] == code
    assert [t for t in templates.WITHOUT_INPUT if t.reply != "{output}"] == [templates.WITHOUT_INPUT[2]]


def test_the_languages_are_the_codes():
    assert {language: tydiqa.Words(*words) for language, *words in rows(section("TyDi QA"))} == tydiqa.WORDS


def benchmarks():
    """The configs of configs/benchmark, by title."""
    evaluation = OmegaConf.load(ROOT / "configs/evaluation/default.yaml")
    loaded = [
        OmegaConf.create({"evaluation": evaluation, "benchmark": OmegaConf.load(path)}).benchmark
        for path in (ROOT / "configs/benchmark").glob("*.yaml")
    ]
    return {config.title: OmegaConf.to_container(config, resolve=True) for config in loaded}


@pytest.mark.parametrize("title", benchmarks())
def test_every_benchmark_has_a_section(title):
    config = benchmarks()[title]
    assert f"`eval/benchmarks/{config['module']}.py`" in section(title)


def test_the_numbers_of_benchmarks_are_the_configs():
    for title, items, _, shots, new_tokens, _, mean in rows(section("Benchmarks")):
        config = benchmarks()[title]
        assert f"{config['published']['items']:,}" == items
        assert str(config.get("max_new_tokens", "none")) == new_tokens
        assert config.get("shots", 0) == int(shots) or title == "BBH"  # its shots are in its files
        assert mean.startswith(config["average"])


def test_the_chat_headers_are_the_codes():
    assert f"`{REPLY_HEADER}{{content}}</s>\n`".replace("\n", "⏎") in section("Chat format")


def test_the_prefix_of_gsm8k_is_the_codes():
    prefix = gsm8k.prefix(gsm8k.EXEMPLARS).encode()
    assert hashlib.sha256(prefix).hexdigest() in section("GSM8K")
    assert f"{len(prefix):,} bytes" in section("GSM8K")


def test_the_reply_of_mmlu_is_the_codes():
    for variant, text in mmlu.ANSWER_PREFIX.items():
        assert f"`{text}` ({variant})" in section("MMLU")


def test_the_stops_of_humaneval_are_the_configs():
    stops = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/benchmark/humaneval.yaml").stops)
    printed = [literal(stop) for stop in re.findall(r"`(⏎\w+|⏎#)`", section("HumanEval"))]
    assert stops["chat"]["authors"] == stops["nochat"]["authors"] == stops["nochat"]["tulu"] == printed
    assert stops["chat"]["tulu"] == [*printed, "\n```"]


def test_the_prompts_of_humaneval_are_the_codes():
    given = [("authors", None), ("tulu", "{instruction}"), ("tulu", None)]
    for (variant, instruction), (_, content, reply) in zip(given, rows(section("HumanEval")), strict=True):
        made = humaneval.prompt("{start}", instruction, Prompting(chat=True, variant=variant))
        spoken = literal(content.removesuffix(" of HumanEvalPack"))
        assert made == f"<|user|>\n{spoken}\n{REPLY_HEADER}{literal(reply)}"


def test_anchors_are_as_stable_as_their_names():
    names = [anchor(heading) for heading in headings(ROOT / "docs/protocol.md")]
    assert all(a != b for a, b in pairwise(sorted(names)))
