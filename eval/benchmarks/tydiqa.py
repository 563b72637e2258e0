"""TyDi QA, gold passages: reading comprehension, SQuAD v1.1 metric per language (docs/protocol.md, TyDi QA)."""

import random
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.benchmarks import entries
from data_prep.chat import user_prompt
from data_prep.files import BrokenRow, needed, strict, texts
from data_prep.sources import Files, single
from eval.benchmarks import Item, Prompting, Verdict

METRICS = ("F1", "exact match")


class Words(NamedTuple):
    """What a language calls the parts of the prompt."""

    instruction: str
    passage: str
    question: str
    answer: str


WORDS = {
    "arabic": Words("أجب على السؤال التالي بناءً على المعلومات في المقطع المعطى.", "المقطع:", "السؤال:", "الإجابة:"),
    "bengali": Words("প্রদত্ত অধ্যায়ের তথ্যের উপর ভিত্তি করে নিম্নলিখিত প্রশ্নের উত্তর দিন।", "অধ্যায়:", "প্রশ্ন:", "উত্তর:"),
    "english": Words(
        "Answer the following question based on the information in the given passage.",
        "Passage:",
        "Question:",
        "Answer:",
    ),
    "finnish": Words(
        "Vastaa seuraavaan kysymykseen annetun kappaleen tiedon perusteella.", "Kappale:", "Kysymys:", "Vastaus:"
    ),
    "indonesian": Words(
        "Jawab pertanyaan berikut berdasarkan informasi di bagian yang diberikan.", "Bagian:", "Pertanyaan:", "Jawaban:"
    ),
    "korean": Words("주어진 문단의 정보에 기반하여 다음 질문에 답하십시오.", "문단:", "질문:", "답변:"),
    "russian": Words(
        "Ответьте на следующий вопрос на основе информации в данном отрывке.", "Отрывок:", "Вопрос:", "Ответ:"
    ),
    "swahili": Words(
        "Jibu swali lifuatalo kulingana na habari kwenye kifungu kilichotolewa.", "Kifungu:", "Swali:", "Jibu:"
    ),
    "telugu": Words("ఇచ్చిన పేరాలోని సమాచారం ఆధారంగా కింది ప్రశ్నకు సమాధానం ఇవ్వండి.", "పేరా:", "ప్రశ్న:", "సమాధానం:"),
}
SEED = 42  # of the draw of the shots


@dataclass(frozen=True)
class Question:
    id: str
    language: str  # English name, lower case: the id before its first `-`
    context: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class TyDiQA:
    """Questions in file order. `label` is XQuAD for that stand-in: its scores must not be called TyDi QA."""

    train: tuple[Question, ...]
    dev: tuple[Question, ...]
    label: str = ""

    def __len__(self) -> int:
        return len(self.dev)


def load(files: Files) -> TyDiQA:
    """A file each for `train` and `dev`, in SQuAD's layout. Raises ValueError."""
    train, dev = (tuple(_questions(single(files, split))) for split in ("train", "dev"))
    stand_in = any("-xquad-" in question.id for question in dev)
    return TyDiQA(train, dev, label="XQuAD" if stand_in else "")


def _questions(path: Path) -> Iterator[Question]:
    articles = ((f"{path}[{i}]", article) for i, article in enumerate(entries(path, "data")))
    for questions in strict(articles, lambda article: list(_of_article(article))):
        yield from questions


def _of_article(article: Any) -> Iterator[Question]:
    for paragraph in needed(article, "paragraphs", list):
        (context,) = texts(paragraph, "context")
        for row in needed(paragraph, "qas", list):
            id_, question = texts(row, "id", "question")
            answers = tuple(texts(answer, "text")[0] for answer in needed(row, "answers", list))
            if not answers or not all(map(str.strip, answers)):  # an empty output would be the right one
                raise BrokenRow(f"question '{id_}' has no answer, or an empty one")
            yield Question(id_, id_.split("-")[0], context, question, answers)


class Shot(NamedTuple):
    """A worked example."""

    context: str
    question: str
    answer: str


def prompt(language: str, shots: Iterable[Shot], context: str, question: str, prompting: Prompting) -> str:
    """The whole text given to the model, without `<s>`."""
    words = WORDS[language]
    worked = "".join(f"{_ask(words, s.context, s.question)}{words.answer} {s.answer}\n\n" for s in shots)
    content = f"{words.instruction}\n\n{worked}{_ask(words, context, question)}"
    return user_prompt(content, words.answer) if prompting.chat else content + words.answer


def _ask(words: Words, context: str, question: str) -> str:
    return f"{words.passage} {context}\n{words.question} {question}\n"


def items(raw: TyDiQA, tokenizer: Any, prompting: Prompting) -> list[Item]:
    """One item per question of the dev split; the task is the language.

    Raises ValueError for a language without instruction or without training questions.
    """
    shorten = lru_cache(maxsize=None)(partial(cut_context, tokenizer=tokenizer, limit=prompting.max_context_tokens))
    shots = {
        language: [Shot(shorten(row.context), row.question, row.answers[0]) for row in rows]
        for language, rows in draw_shots(raw, prompting.shots).items()
    }
    return [
        Item(
            id=row.id,
            task=row.language,
            prompt=prompt(row.language, shots[row.language], shorten(row.context), row.question, prompting),
            gold=list(row.answers),
        )
        for row in raw.dev
    ]


def draw_shots(raw: TyDiQA, count: int) -> dict[str, list[Question]]:
    """`count` random training questions for each language of the dev split, drawn in alphabetical order, seed 42."""
    draw = random.Random(SEED)
    return {
        language: draw.sample(_pool(raw, language, count), count)
        for language in sorted({row.language for row in raw.dev})
    }


def _pool(raw: TyDiQA, language: str, count: int) -> list[Question]:
    pool = [row for row in raw.train if row.language == language]
    if language not in WORDS:
        raise ValueError(f"TyDi QA has no instruction for the language '{language}'; known are {', '.join(WORDS)}.")
    if len(pool) < count:
        raise ValueError(
            f"TyDi QA needs {count} training question(s) in {language} as shots; the file has {len(pool)}."
        )
    return pool


def cut_context(context: str, tokenizer: Any, limit: int | None) -> str:
    """At most `limit` tokens of a passage, `<s>` counted. A passage that is cut keeps `<s>` as text."""
    ids = tokenizer.encode(context, verbose=False)
    return context if limit is None or len(ids) <= limit else tokenizer.decode(ids[:limit])


def parse(output: str, item: Item | None = None) -> str:
    """The whole text, stripped."""
    return output.strip()


def score(item: Item, predictions: Sequence[str]) -> Verdict:
    """SQuAD v1.1: exact match and token F1, each the best over the gold answers."""
    return Verdict(
        (
            100.0 * max(_f1(_words(predictions[0]), _words(answer)) for answer in item.gold),
            100.0 * max(_words(predictions[0]) == _words(answer) for answer in item.gold),
        )
    )


def golden(given: dict[str, Any], judge: Any) -> dict[str, Any]:
    """The result of a golden case (eval/golden.py)."""
    _, (f1, exact_match) = judge(given["output"], gold=given["answers"])
    return {"exact_match": exact_match, "f1": f1}


def golden_prompt(given: dict[str, Any], prompting: Prompting) -> str:
    """The prompt of a golden case."""
    shots = [Shot(**shot) for shot in given["shots"]]
    return prompt(given["lang"], shots, given["item"]["context"], given["item"]["question"], prompting)


def _words(text: str) -> list[str]:
    """SQuAD's normalisation, English articles and ASCII punctuation in every language."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _f1(predicted: list[str], gold: list[str]) -> float:
    """Of the two bags of words; 0 if both are empty."""
    common = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * common / (len(predicted) + len(gold)) if common else 0.0
