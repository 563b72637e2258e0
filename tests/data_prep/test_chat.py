import json
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.chat import IGNORED, encode, render, user_prompt


def golden_cases(shared):
    lines = (shared / "reference" / "golden_scores.jsonl").read_text(encoding="utf-8").splitlines()
    return [case for case in map(json.loads, lines) if case["benchmark"] == "encode"]


def labelled_pieces(encoded, tokenizer):
    """The runs of tokens that carry loss, as text."""
    pairs = zip(encoded["input_ids"], encoded["labels"], strict=True)
    runs = [[i for i, _ in run] for masked, run in groupby(pairs, key=lambda pair: pair[1] == IGNORED) if not masked]
    return [tokenizer.decode(run) for run in runs]


def chat(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


CASES = {
    "two turns": (
        [("user", " Hi \n"), ("assistant", "Hello.\n\n"), ("user", "Bye"), ("assistant", " So long. ")],
        "<|user|>\nHi\n<|assistant|>\nHello.</s>\n<|user|>\nBye\n<|assistant|>\nSo long.</s>",
        ["Hello.</s>\n", "So long.</s>"],
    ),
    "a system message": (
        [("system", "Be brief."), ("user", "Über was?"), ("assistant", "Über 3 €.")],
        "<|system|>\nBe brief.\n<|user|>\nÜber was?\n<|assistant|>\nÜber 3 €.</s>",
        ["Über 3 €.</s>"],
    ),
    "a reply that opens, and a second one": (
        [("assistant", "Hi."), ("user", "Hi."), ("assistant", "Yes?"), ("assistant", "Well?")],
        "<|assistant|>\nHi.</s>\n<|user|>\nHi.\n<|assistant|>\nYes?</s>\n<|assistant|>\nWell?</s>",
        ["<|assistant|>\nHi.</s>\n", "Yes?</s>\n<|assistant|>\nWell?</s>"],
    ),
    "no reply": ([("user", "Anyone?")], "<|user|>\nAnyone?", []),
    "an empty reply": ([("user", "a"), ("assistant", "")], "<|user|>\na\n<|assistant|>\n</s>", ["</s>"]),
}


@pytest.mark.parametrize("name", CASES)
def test_cases_written_by_hand(name, byte_tokenizer):
    """What is written down in docs/protocol.md, Chat format, and in docs/protocol.md, Loss mask."""
    pairs, text, labelled = CASES[name]
    eos = byte_tokenizer.eos_token
    assert render(chat(*pairs), eos) == text.replace("</s>", eos)
    pieces = labelled_pieces(encode(chat(*pairs), byte_tokenizer, 512), byte_tokenizer)
    assert pieces == [piece.replace("</s>", eos) for piece in labelled]


@pytest.mark.parametrize(
    "kind", ["llama_tokenizer", "byte_tokenizer", pytest.param("smol_tokenizer", marks=pytest.mark.slow)]
)
def test_golden_cases(kind, shared, request):
    tokenizer = request.getfixturevalue(kind)
    cases = golden_cases(shared)
    assert len(cases) >= 6
    for case in cases:
        messages = case["input"]["messages"]
        text, labelled = (json.loads(json.dumps(case["expected"]).replace("</s>", tokenizer.eos_token))).values()
        encoded = encode(messages, tokenizer, 512)
        assert render(messages, tokenizer.eos_token) == text, case["id"]
        assert encoded["input_ids"] == tokenizer(text).input_ids, case["id"]
        assert labelled_pieces(encoded, tokenizer) == labelled, case["id"]


def test_the_llama_tokenizer_puts_s_in_front_and_it_is_masked(llama_tokenizer):
    encoded = encode(chat(("user", "a"), ("assistant", "b")), llama_tokenizer, 512)
    assert encoded["input_ids"][0] == llama_tokenizer.bos_token_id
    assert encoded["labels"][0] == IGNORED
    assert encoded["labels"][-1] == llama_tokenizer.eos_token_id


def test_every_reply_carries_loss_and_the_newline_before_the_next_message_too(byte_tokenizer):
    messages = chat(("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"))
    pieces = labelled_pieces(encode(messages, byte_tokenizer, 512), byte_tokenizer)
    assert pieces == ["two<|im_end|>\n", "four<|im_end|>"]


def test_a_reply_without_a_message_to_answer_keeps_its_header_labelled(llama_tokenizer, byte_tokenizer):
    opening = encode(chat(("assistant", "a")), llama_tokenizer, 512)
    assert opening["labels"] == opening["input_ids"]  # `<s>` included
    double = encode(chat(("user", "q"), ("assistant", "a"), ("assistant", "b")), byte_tokenizer, 512)
    assert labelled_pieces(double, byte_tokenizer) == ["a<|im_end|>\n<|assistant|>\nb<|im_end|>"]


def test_truncation_is_on_the_right_and_drops_the_end_of_text(llama_tokenizer):
    messages = chat(("user", "q"), ("assistant", "a long reply"))
    full, cut = (encode(messages, llama_tokenizer, length) for length in (None, 14))
    assert len(full["input_ids"]) > 14
    assert cut == {name: values[:14] for name, values in full.items()}
    assert cut["labels"][-1] == cut["input_ids"][-1] != llama_tokenizer.eos_token_id


def test_a_prompt_that_fills_the_length_leaves_no_label(byte_tokenizer):
    encoded = encode(chat(("user", "q" * 100), ("assistant", "a")), byte_tokenizer, 50)
    assert encoded["labels"] == [IGNORED] * 50


@pytest.mark.parametrize("role", ["tool", "User", ""])
def test_another_role_is_an_error(role):
    with pytest.raises(ValueError, match=f"Unknown role '{role}'.*system, user, assistant"):
        render(chat(("user", "q"), (role, "a")), "</s>")


def test_no_message_is_an_error():
    with pytest.raises(ValueError, match="at least one message"):
        render([], "</s>")


def test_the_evaluation_prompt_is_not_stripped():
    assert user_prompt(" q \n", "A: ") == "<|user|>\n q \n\n<|assistant|>\nA: "


# any text but the tokenizers' own special tokens, half surrogates, and control characters that strip() takes for spaces
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=40)
CONVERSATION = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXT), min_size=1, max_size=5)


def expected_loss(messages, eos):
    """The text that carries loss, derived on the text alone."""
    text = ""
    for i, (message, before) in enumerate(zip(messages, [None, *messages], strict=False)):
        if message["role"] == "assistant":
            header = "" if before and before["role"] != "assistant" else "<|assistant|>\n"
            end = "\n" if i + 1 < len(messages) else ""
            text += f"{header}{message['content'].strip()}{eos}{end}"
    return text


@settings(max_examples=150)
@given(pairs=CONVERSATION)
def test_loss_is_on_the_replies_and_nowhere_else(pairs, byte_tokenizer):
    messages = chat(*pairs)
    encoded = encode(messages, byte_tokenizer, None)
    assert byte_tokenizer.decode(encoded["input_ids"]) == render(messages, byte_tokenizer.eos_token)
    labelled = "".join(labelled_pieces(encoded, byte_tokenizer))
    assert labelled == expected_loss(messages, byte_tokenizer.eos_token)


@settings(max_examples=150)
@given(pairs=CONVERSATION, length=st.integers(1, 60))
def test_labels_are_masked_or_the_ids_and_truncation_only_cuts(pairs, length, llama_tokenizer):
    full, cut = (encode(chat(*pairs), llama_tokenizer, limit) for limit in (None, length))
    assert all(label in (IGNORED, token) for token, label in zip(full["input_ids"], full["labels"], strict=True))
    assert cut == {name: values[:length] for name, values in full.items()}
