"""The tokenizer of the micro models. Known words are one piece each; any other text falls back to bytes."""

from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPACE = "▁"  # Llama's sign for a space inside a piece
# Text is split into: a word, a number or a run of signs, each with the space before it; a newline; an indentation.
SIGNS = rf"[^\s{SPACE}\p{{L}}\p{{M}}\p{{N}}]+"
SPLIT = rf"{SPACE}?[\p{{L}}\p{{M}}]+|{SPACE}?\p{{N}}+|{SPACE}?{SIGNS}|\n|{SPACE}+(?={SPACE})|{SPACE}|."
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def build(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build the tokenizer whose pieces are the words of `texts`. Like Llama's, it puts `<s>` in front of a text."""
    splitter = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    counts = Counter(piece for text in texts for piece, _ in splitter.pre_tokenize_str(text.replace(" ", SPACE)))
    pieces = [piece for piece, _ in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])) if piece != SPACE]
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    # Bytes are used only where no piece fits, so the scores of the pieces do not matter.
    vocabulary = [(piece, 0.0) for piece in [*SPECIAL, *letters, SPACE, *pieces]]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
