"""The conversation that every reader yields."""

from typing import Any

Conversation = dict[str, Any]  # {"dataset": str, "id": str, "messages": [{"role": str, "content": str}, ...]}

# open-instruct seeded once and then sampled all sets in turn, SuperNI first. We seed every set with 42. So SuperNI is
# as published; the other sets are not, since their draws depended on all sets before them.
SEED = 42


def conversation(dataset: str, number: int | str, prompt: str, reply: str) -> Conversation:
    """Return a conversation of one user message and one reply, with the id `<dataset>_<number>`."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
    return {"dataset": dataset, "id": f"{dataset}_{number}", "messages": messages}
