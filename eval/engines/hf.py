"""transformers, with PEFT adapters: slower than vLLM, with the same contract, wherever torch runs."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, StoppingCriteria

from eval.benchmarks import cut
from eval.engines import Decoding, Request, resolve_dtype


class HfEngine:
    """The contract of `eval.engines.Engine`. model: a checkpoint folder; adapters: the LoRA directories to come."""

    def __init__(
        self,
        model: Path,
        adapters: Sequence[Path] = (),
        *,
        dtype: str = "auto",
        max_model_len: int = 4096,
        batch_size: int = 16,
        name: str = "hf",
    ) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, resolve_dtype(dtype)))
        config = base.config.get_text_config()  # models that also see images keep the decoder's apart
        self.context = min(max_model_len, getattr(config, "max_position_embeddings", max_model_len))
        self.batch_size = batch_size
        self._names = {adapter: f"adapter{i}" for i, adapter in enumerate(adapters)}
        self.model: Any = _with_adapters(base.to(self.device), self._names)

    def close(self) -> None:
        """See `eval.engines.Engine`."""
        del self.model
        if self.device == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[tuple[int, list[str]]]:
        """See `eval.engines.Engine`."""
        # What is drawn for a prompt depends on its whole batch, and a resumed evaluation would make other batches.
        size = 1 if decoding.temperature else self.batch_size
        for adapter, batch, inputs in self._batches(requests, size):
            texts = self._continue(inputs, decoding, adapter) if inputs else [""] * decoding.samples
            for position, index in enumerate(batch):
                yield index, texts[position * decoding.samples : (position + 1) * decoding.samples]

    @torch.inference_mode()
    def letter_logits(
        self, requests: Sequence[Request], letter_ids: Mapping[str, int]
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """See `eval.engines.Engine`."""
        tokens = list(letter_ids.values())
        for adapter, batch, inputs in self._batches(requests, self.batch_size):
            if inputs is None:
                yield batch[0], {}
                continue
            positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)  # (batch, padded), 0 at the first token
            with self._using(adapter):
                logits = self.model(**inputs, position_ids=positions, logits_to_keep=1).logits[:, -1]  # (batch, vocab)
            for index, row in zip(batch, logits[:, tokens].tolist(), strict=True):
                yield index, dict(zip(letter_ids, row, strict=True))

    def _batches(self, requests: Sequence[Request], size: int) -> Iterator[tuple[Path | None, list[int], Any]]:
        """Per adapter, batches of prompts of similar length: their indices and padded inputs.

        A prompt that leaves no room in the context is a batch of its own, without inputs.
        """
        prompts: dict[Path | None, dict[int, str]] = defaultdict(dict)
        for index, request in enumerate(requests):
            prompts[request.adapter][index] = request.prompt
        for adapter, own in prompts.items():
            ids = dict(zip(own, self.tokenizer(list(own.values()), verbose=False).input_ids, strict=True))
            order = sorted(own, key=lambda index: len(ids[index]))
            fitting = [index for index in order if len(ids[index]) < self.context]
            for index in order[len(fitting) :]:
                yield adapter, [index], None
            for start in range(0, len(fitting), size):
                batch = fitting[start : start + size]
                padded = self.tokenizer.pad({"input_ids": [ids[index] for index in batch]}, return_tensors="pt")
                yield adapter, batch, padded.to(self.device)

    def _continue(self, inputs: Any, decoding: Decoding, adapter: Path | None) -> list[str]:
        """`samples` texts for the first prompt of a batch, then for the second, and so on."""
        width = inputs["input_ids"].shape[1]
        with torch.random.fork_rng(), self._using(adapter):
            torch.manual_seed(decoding.seed)
            ids = self.model.generate(  # (batch * samples, width + new)
                **inputs,
                generation_config=self._generation_config(decoding),
                stopping_criteria=[StopAt(self.tokenizer, decoding.stops, width)] if decoding.stops else [],
            )
        lengths = inputs["attention_mask"].sum(1).repeat_interleave(decoding.samples).tolist()
        return [
            cut(self._text(row[width - length : width], row[width : width + self.context - length]), decoding.stops)
            for row, length in zip(ids, lengths, strict=True)
        ]

    def _generation_config(self, decoding: Decoding) -> GenerationConfig:
        sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            num_return_sequences=decoding.samples,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            do_sample=decoding.temperature > 0,
            **(sampling if decoding.temperature > 0 else {}),
        )

    def _text(self, prompt: Tensor, new: Tensor) -> str:
        """The text that the new tokens add to the prompt's, up to the end-of-sequence token."""
        ids = new.tolist()
        end = ids.index(self.tokenizer.eos_token_id) if self.tokenizer.eos_token_id in ids else len(ids)
        return streamed(self.tokenizer.backend_tokenizer, prompt.tolist(), ids[:end])

    def _using(self, adapter: Path | None) -> AbstractContextManager[None]:
        if adapter is None:
            return self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext()
        self.model.set_adapter(self._names[adapter])
        return nullcontext()


def streamed(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text that tokens `new` add to those of a prompt, as vLLM streams it. Any tokens give some text.

    A tokenizer with byte fallback (LLaMA's) can write a character, then bytes that are none; it then decodes both anew
    as U+FFFD, and the stream breaks because its beginning has changed. vLLM goes on with a new stream, and so do we.
    """
    stream, pieces = DecodeStream(ids=list(prompt), skip_special_tokens=True), []
    for token in new:
        try:
            piece = stream.step(tokenizer, token)
        except Exception as error:  # tokenizers raises nothing more special
            if not str(error).startswith("Invalid prefix"):
                raise
            stream = DecodeStream(skip_special_tokens=True)
            piece = stream.step(tokenizer, token)
        pieces.append(piece or "")
    return "".join(pieces)


class StopAt(StoppingCriteria):
    """Ends a sequence when its new text contains one of the stops."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], start: int) -> None:
        self.tokenizer, self.stops, self.start = tokenizer, stops, start
        self.window = max(map(len, stops)) + 1  # a token is at least one byte, and stops are ASCII

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """input_ids: (sequences, so far); returns (sequences,), true where a stop has been reached."""
        new = input_ids[:, self.start :][:, -self.window :]
        ends = self.tokenizer.batch_decode(new)
        return torch.tensor([any(stop in end for stop in self.stops) for end in ends], device=input_ids.device)


def _with_adapters(base: Any, names: Mapping[Path, str]) -> Any:
    model = base
    for adapter, name in names.items():
        if model is base:
            model = PeftModel.from_pretrained(base, adapter, adapter_name=name)
        else:
            model.load_adapter(adapter, adapter_name=name)
    return model.eval()
