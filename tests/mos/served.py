"""Runs vLLM on a base model with an exported adapter; `test_architectures.py` starts it and reads its output.

Usage: python served.py MODEL_FOLDER LORA_FOLDER RANK, with rows of token ids as JSON on the standard input.
Prints, as the last line, the tokens that vLLM decodes greedily for each row, without and with the adapter, as JSON.
"""

import json
import os
import sys

TOKENS = 8


def main(model: str, lora: str, rank: str) -> None:
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    engine = LLM(
        model=model,
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=64,
        enforce_eager=True,
        enable_lora=True,
        max_lora_rank=int(rank),
    )
    prompts = [TokensPrompt(prompt_token_ids=row) for row in json.load(sys.stdin)]
    settings = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    answers = {}
    for name, request in (("base", None), ("adapter", LoRARequest("adapter", 1, lora))):
        outputs = engine.generate(prompts, settings, lora_request=request, use_tqdm=False)
        answers[name] = [list(output.outputs[0].token_ids) for output in outputs]
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
