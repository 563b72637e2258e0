"""What can be done to the adapters of a running engine, run as a process of its own.

python -m tests.mos_vllm.operations WORK: writes what was seen to WORK/operations.json
"""

import json
import shutil
import sys
from pathlib import Path

PROMPT = [5, 17, 33, 80, 41]


class Session:
    """One engine with two slots and three places on the host, and a device store for two adapters."""

    def __init__(self, work: Path) -> None:
        from vllm import LLM

        options = {"preload": str(work / "preload"), "device_store_gib": 0.00014}
        self.work, self.ids = work, {}
        self.llm = LLM(
            model=str(work / "base"), generation_config="vllm", skip_tokenizer_init=True, dtype="float32",
            max_model_len=128, max_num_seqs=16, enforce_eager=True, enable_lora=True, max_lora_rank=16, max_loras=2,
            max_cpu_loras=3, additional_config={"mos": options},
        )  # fmt: skip
        self.engine = self.llm.llm_engine
        self.worker = self.engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.lora_manager
        self.manager = self.worker._adapter_manager

    def request(self, folder, inplace=False):
        from vllm.lora.request import LoRARequest

        number = self.ids.setdefault(folder, len(self.ids) + 1)
        return LoRARequest(folder, number, str(self.work / folder), load_inplace=inplace)

    def asked(self):
        """The prompt, and how it is answered."""
        from vllm import SamplingParams, TokensPrompt

        sampling = SamplingParams(temperature=0, max_tokens=12, detokenize=False, ignore_eos=True)
        return TokensPrompt(prompt_token_ids=PROMPT), sampling

    def tokens(self, folder, inplace=False):
        self.llm.reset_prefix_cache()
        prompt, sampling = self.asked()
        [output] = self.llm.generate([prompt], sampling, lora_request=[self.request(folder, inplace)], use_tqdm=False)
        return list(output.outputs[0].token_ids)

    def error(self, folder):
        try:
            self.engine.add_lora(self.request(folder))
        except Exception as error:
            return [type(error).__name__, str(error)]
        return None

    def counted(self):
        return dict(self.manager.counters.values)

    def replace(self, folder, source):
        shutil.copytree(self.work / source, self.work / folder, dirs_exist_ok=True)


def preloading(session):
    before = session.counted()
    tokens = session.tokens("preload/a")
    left = len(session.manager.preloaded.adapters)
    return {"at_start": before, "tokens": tokens, "after": session.counted(), "left": left}


def reloading(session):
    session.replace("live", "mos-1")
    seen = {"first": session.tokens("live")}
    session.replace("live", "mos-2")
    seen["unasked"] = session.tokens("live")
    seen["asked"] = session.tokens("live", inplace=True)
    loads = session.counted()["loads"]
    session.tokens("live", inplace=True)
    seen["loads_of_unchanged_files"] = session.counted()["loads"] - loads
    (session.work / "live" / "adapter_model.safetensors").write_bytes(b"broken")
    seen["broken"] = session.tokens("live", inplace=True)
    shutil.rmtree(session.work / "live")
    seen["gone"] = session.tokens("live", inplace=True)
    return seen


def unloading(session):
    session.tokens("mos-0")
    number = session.ids["mos-0"]
    before = number in session.engine.list_loras(), session.counted()["adapters_on_host"]
    removed = session.engine.remove_lora(number)
    after = number in session.engine.list_loras(), session.counted()["adapters_on_host"]
    return {"before": before, "removed": removed, "after": after, "again": session.tokens("mos-0")}


def pinning(session):
    session.tokens("mos-3")
    number = session.ids["mos-3"]
    session.engine.pin_lora(number)
    for folder in ("mos-0", "mos-1", "mos-2", "lora-1", "lora-2", "mos-0"):
        session.tokens(folder)
    held = session.manager.mos[number].key
    seen = {
        "listed": number in session.engine.list_loras(),
        "in_slot": number in session.manager.lora_index_to_id,
        "on_device": held in session.manager.store.held,
        "tokens": session.tokens("mos-3"),
    }
    session.engine.remove_lora(number)
    return seen


def crowding(session):
    """An adapter that answers while others push it out of the host's memory, and its folder goes."""
    session.replace("crowded", "mos-1")
    engine, number = session.engine, session.request("crowded").lora_int_id
    engine.add_request("crowded", *session.asked(), lora_request=session.request("crowded"))
    for _ in range(3):
        engine.step()
    shutil.rmtree(session.work / "crowded")
    for folder in ("mos-0", "mos-2", "mos-3"):
        engine.add_lora(session.request(folder))
    pushed_out = number not in engine.list_loras()
    while engine.has_unfinished_requests():
        outputs = engine.step()
    return {"pushed_out": pushed_out, "tokens": list(outputs[0].outputs[0].token_ids)}


def refusing(session):
    errors = {folder: session.error(folder) for folder in ("nowhere", "broken", "wide", "too-large", "deep")}
    return {"errors": errors, "tokens": session.tokens("mos-1")}


def looking_up(session):
    """How often the registry is copied while registered adapters are asked for."""
    kind, copies = type(session.manager), []
    original = kind.list_adapters
    kind.list_adapters = lambda self: copies.append(1) or original(self)
    try:
        session.tokens("mos-1")
        session.tokens("mos-1")
    finally:
        kind.list_adapters = original
    return {"copies": len(copies)}


def counting_operations(session):
    """The operations that write tensors when an adapter is activated, and the layer types."""
    from tests.mos_vllm.test_stack import CountWrites

    session.tokens("mos-1")
    session.manager.deactivate_adapter(session.ids["mos-1"])
    with CountWrites() as counter:
        session.manager.activate_adapter(session.ids["mos-1"])
    return {"operations": counter.count.total(), "layer_types": len(session.manager.stacks)}


def main(work: Path) -> None:
    import torch

    torch._dynamo.config.disable = True
    session = Session(work)
    parts = (preloading, reloading, unloading, pinning, crowding, refusing, looking_up, counting_operations)
    seen = {part.__name__: part(session) for part in parts}
    seen["exported"] = {str(i): session.tokens(f"lora-{i}") for i in range(4)}
    seen["preloaded_exported"] = session.tokens("lora-a")
    (work / "operations.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
