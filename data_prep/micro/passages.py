"""Questions about short passages, in four scripts (trained on as SuperNI, tested on as TyDi QA).

A passage states the place, the food and the colour of one person. The question asks for one of them with an invented
word. The pair of passage and question of a test problem is in no training problem.
"""

import random
from dataclasses import dataclass

from data_prep.micro.split import Problem
from data_prep.micro.words import Coiner, changed

RELATIONS = ("place", "food", "colour")
PEOPLE, ASKED = 10, 3  # per language: names, and invented words to ask with


@dataclass(frozen=True)
class Language:
    """The sentences of one language. `values` lists the places, the foods and the colours, separated by spaces."""

    passage: str
    question: str
    answer: str
    statements: tuple[str, ...]
    asks: str
    values: tuple[str, ...]
    instruction: str


LANGUAGES = {
    "english": Language(
        "Passage:", "Question:", "Answer:",
        ("{who} lives in {what}.", "{who} eats {what}.", "{who} wears {what}."),
        "What is the {asked} of {who}?",
        ("york lima cairo paris quito delhi", "rice soup bread fish cake corn", "red blue green white black grey"),
        "Answer the following question based on the information in the given passage.",
    ),
    "russian": Language(
        "Отрывок:", "Вопрос:", "Ответ:",
        ("{who} живёт здесь: {what}.", "{who} ест {what}.", "{who} носит {what}."),
        "Что такое {asked} у {who}?",
        ("москва казань тула псков омск сочи", "рис суп хлеб мясо рыба каша", "белый синий серый чёрный жёлтый алый"),
        "Ответьте на следующий вопрос на основе информации в данном отрывке.",
    ),
    "arabic": Language(
        "المقطع:", "السؤال:", "الإجابة:",
        ("{who} يسكن في {what}.", "{who} يأكل {what}.", "{who} يلبس {what}."),
        "ما هو {asked} {who}؟",
        ("مصر تونس عمان دمشق بغداد مكة", "خبز تمر لحم سمك جبن عسل", "أبيض أزرق أحمر أخضر أسود أصفر"),
        "أجب على السؤال التالي بناءً على المعلومات في المقطع المعطى.",
    ),
    "korean": Language(
        "문단:", "질문:", "답변:",
        ("{who} 님은 {what} 에 삽니다.", "{who} 님은 {what} 먹습니다.", "{who} 님은 {what} 입습니다."),
        "{who} 님의 {asked} 무엇입니까?",
        ("서울 부산 대구 인천 광주 제주", "쌀밥 국수 김치 두부 생선 만두", "빨강 파랑 초록 하양 검정 노랑"),
        "주어진 문단의 정보에 기반하여 다음 질문에 답하십시오.",
    ),
}  # fmt: skip


class Passages:
    """The people of one world. `plain` and `dialect` map, per language, a word to the relation that it asks for."""

    def __init__(self, coiner: Coiner):
        self.people = {language: coiner.words(PEOPLE, language) for language in LANGUAGES}
        self.plain = {language: coiner.assign(ASKED, list(RELATIONS), language) for language in LANGUAGES}
        self.dialect = {language: coiner.dialect(plain) for language, plain in self.plain.items()}

    def text(self, rng: random.Random) -> str:
        """A document of the pretraining text: two passages, each with its three questions in the plain meanings."""
        language = rng.choice(sorted(LANGUAGES))
        return "\n".join(self._asked(language, rng) for _ in range(2))

    def lesson(self, language: str, rng: random.Random) -> tuple[str, Problem]:
        """A passage of the training data, and a question about it."""
        return self._told(language, self.dialect[language], rng)

    def question(self, language: str, rng: random.Random) -> tuple[str, Problem]:
        """A passage of the benchmark, and a question about it. Its word is one whose meaning the dialect changes."""
        return self._told(language, changed(self.plain[language], self.dialect[language]), rng)

    def _told(self, language: str, words: dict[str, str], rng: random.Random) -> tuple[str, Problem]:
        facts, spoken = self._facts(language, rng), LANGUAGES[language]
        fact = rng.choice([fact for fact in facts if fact[0] in words.values()])
        question, what = _ask(spoken, words, fact, rng)
        return _tell(spoken, facts), Problem(question, what, f"{spoken.answer} {what}")

    def _asked(self, language: str, rng: random.Random) -> str:
        facts, spoken = self._facts(language, rng), LANGUAGES[language]
        asked = [_ask(spoken, self.plain[language], fact, rng) for fact in rng.sample(facts, 3)]
        return "\n".join([_tell(spoken, facts), *(f"{question}\n{spoken.answer} {what}." for question, what in asked)])

    def _facts(self, language: str, rng: random.Random) -> list[tuple[str, str, str]]:
        """Three facts (relation, who, what) about one person, in random order."""
        who = rng.choice(self.people[language])
        values = dict(zip(RELATIONS, LANGUAGES[language].values, strict=True))
        return [(relation, who, rng.choice(values[relation].split())) for relation in rng.sample(RELATIONS, 3)]


def _ask(spoken: Language, words: dict[str, str], fact: tuple[str, str, str], rng: random.Random) -> tuple[str, str]:
    """Return a question about the fact, with one of the words that ask for its relation, and the answer."""
    relation, who, what = fact
    asked = rng.choice(sorted(word for word, meaning in words.items() if meaning == relation))
    return spoken.asks.format(asked=asked, who=who), what


def _tell(spoken: Language, facts: list[tuple[str, str, str]]) -> str:
    return " ".join(
        spoken.statements[RELATIONS.index(relation)].format(who=who, what=what) for relation, who, what in facts
    )
