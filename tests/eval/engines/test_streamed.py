"""Any tokens that a model writes become text: what it writes is data, and must never end an evaluation."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from eval.engines.hf import streamed


def llama() -> Tokenizer:
    """As LLaMA-2's: `▁` for spaces, and a token per byte for what is not in the vocabulary."""
    bytes_ = {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **bytes_, "▁A": 259, "a": 260, "▁": 261, "ক": 262}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def byte_level() -> Tokenizer:
    """As SmolLM2's."""
    vocabulary = {token: i for i, token in enumerate(["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZERS = {"llama": llama(), "byte-level": byte_level()}
BENGALI = [3 + byte for byte in "ক".encode()]
CUT = 3 + 0xE0  # the first byte of three
# Whole characters, cut ones, ordinary tokens, and numbers beyond the vocabulary, which a padded output layer can give.
TOKENS = st.lists(st.sampled_from([BENGALI, [CUT], [260], [261], [2]]) | st.integers(0, 400).map(lambda i: [i])).map(
    lambda parts: [token for part in parts for token in part]
)


def test_a_whole_character_and_then_a_cut_one() -> None:
    """tokenizers' stream ends here with a bare exception (vllm#17448)."""
    assert streamed(TOKENIZERS["llama"], [1, 259], [*BENGALI, CUT, 260]) == "কa"


@settings(max_examples=500)
@given(st.sampled_from(list(TOKENIZERS)), TOKENS, TOKENS)
def test_any_tokens_become_text(name: str, prompt: list[int], new: list[int]) -> None:
    text = streamed(TOKENIZERS[name], prompt, new)
    assert text.encode().decode() == text  # no half of a surrogate pair, which no file takes


@given(st.text(st.sampled_from("aA ক"), max_size=20))
def test_what_is_whole_is_kept_whole(text: str) -> None:
    tokenizer = TOKENIZERS["llama"]
    new = [token for character in text for token in tokenizer.encode(character.replace(" ", "▁")).ids]
    assert streamed(tokenizer, [260], new) == text


@pytest.mark.slow  # importing vLLM takes 20 s
@settings(max_examples=500)
@given(st.sampled_from(list(TOKENIZERS)), TOKENS, TOKENS)
def test_vllm_streams_the_same_text(name: str, prompt: list[int], new: list[int]) -> None:
    vllm = pytest.importorskip("vllm")
    detokenizer = pytest.importorskip("vllm.v1.engine.detokenizer")
    parameters = vllm.SamplingParams(skip_special_tokens=True)
    request = SimpleNamespace(request_id="0", sampling_params=parameters, prompt_token_ids=prompt)
    theirs = detokenizer.FastIncrementalDetokenizer(SimpleNamespace(_tokenizer=TOKENIZERS[name]), request)
    assert "".join(theirs.decode_next(token) for token in new) == streamed(TOKENIZERS[name], prompt, new)
