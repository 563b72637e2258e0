"""Whether two greedy continuations part at a numeric tie, where rounding decides which token wins."""

from typing import Any

import torch


@torch.inference_mode()
def gap_at_parting(model: Any, tokenizer: Any, prompt: str, one: str, other: str) -> float:
    """How far apart the logits of the two next tokens are where the texts part; 0.0 is a perfect tie."""
    start = tokenizer(prompt).input_ids
    ends = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in (one, other)]
    parting = next(i for i, (a, b) in enumerate(zip(*ends, strict=False)) if a != b)
    logits = model(torch.tensor([start + ends[0][:parting]])).logits[0, -1]  # (vocab,)
    return float((logits[ends[0][parting]] - logits[ends[1][parting]]).abs())
