"""Greedy tokens of one vLLM engine for lists of adapters, run as a process of its own.

python -m tests.mos_vllm.generate WORK SETTINGS.json: writes what each phase gave to WORK/<name>.json
"""

import json
import sys
from pathlib import Path


def main(work: Path, settings: dict) -> None:
    """settings: `base`, a folder; `engine`, arguments of LLM; `phases`, each a list of adapter folders (null: none), in
    order; `prompts`, token ids; `sampling`. How many tokens came from the prefix cache goes to <name>-cached.json."""
    import torch

    torch._dynamo.config.disable = True
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    common = {"skip_tokenizer_init": True, "max_model_len": 128, "max_num_seqs": 16, "enforce_eager": True}
    llm = LLM(model=str(work / settings.get("base", "base")), generation_config="vllm", **common | settings["engine"])
    sampling = SamplingParams(
        **{"temperature": 0, "max_tokens": 12, "detokenize": False, "ignore_eos": True} | settings.get("sampling", {})
    )
    ids: dict[str, int] = {}
    cached = []
    for number, phase in enumerate(settings["phases"]):
        prompts, requests = [], []
        for prompt in settings["prompts"]:
            for folder in phase:
                prompts.append(TokensPrompt(prompt_token_ids=prompt))
                requests.append(
                    folder and LoRARequest(folder, ids.setdefault(folder, len(ids) + 1), str(work / folder))
                )
        outputs = llm.generate(prompts, sampling, lora_request=requests, use_tqdm=False)
        cached.append(sum(output.num_cached_tokens or 0 for output in outputs))
        texts = [[list(sample.token_ids) for sample in output.outputs] for output in outputs]
        (work / f"{settings['name']}-{number}.json").write_text(json.dumps(texts), encoding="utf-8")
    (work / f"{settings['name']}-cached.json").write_text(json.dumps(cached), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
