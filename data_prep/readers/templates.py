"""The instruction templates of SuperNI (zero-shot) and CodeAlpaca, with their weights (docs/protocol.md, Templates)."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    weight: float
    prompt: str
    reply: str = "{output}"


WITH_INPUT = (
    Template(0.2, "{instruction}\n\n{input}\n\n"),
    Template(0.1, "{instruction}\n{input}\n\n"),
    Template(0.1, "{instruction}\n{input}\n"),
    Template(0.05, "{instruction}\n\nInput: {input}\n\nOutput:"),
    Template(0.05, "{instruction}\nInput: {input}\nOutput:"),
    Template(0.05, "{instruction}\n{input}\n\nResponse:"),
    Template(0.05, "{instruction}\n\nAdditional Context:\n{input}\n\nAnswer:"),
    Template(0.05, "Task: {instruction}\nInput: {input}\nOutput:"),
    Template(0.05, "Task: {instruction}\n\n{input}\n\n"),
    Template(0.05, "Task: {instruction}\n\n{input}\n\nAnswer:"),
    Template(0.05, "You need to complete the following task:\n\n{instruction}\n\n{input}\n\nAnswer:"),
    Template(0.05, "{instruction}\n\nNow complete the following instance -\nInput: {input}\nOutput:"),
    Template(0.05, "Instruction:{instruction}\n\nInput: {input}\n\n"),
    Template(
        0.1,
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
    ),
)

WITHOUT_INPUT = (
    Template(0.2, "{instruction}\n\n"),
    Template(0.1, "{instruction}\n"),
    Template(0.1, "{instruction}", "\n{output}"),
    Template(0.05, "{instruction} Output:"),
    Template(0.05, "{instruction}\nResponse:"),
    Template(0.05, "{instruction}\n\nAnswer:"),
    Template(0.05, "Task: {instruction}\n\n"),
    Template(0.05, "Instruction: {instruction}\n"),
    Template(0.05, "Instruction: {instruction}\nOutput:"),
    Template(0.05, "You need to complete the following task:\n\n{instruction}\n\n"),
    Template(0.05, "Can you help with this?\n\n{instruction}\n"),
    Template(0.05, "Plase answer the following request: {instruction}\nAnswer:"),  # spelled so in the original
    Template(0.05, "Tell me how would you respond to the following request.\n{instruction}\n"),
    Template(
        0.1,
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:",
    ),
)


def fill(instruction: str, input_: str, output: str, rng: random.Random) -> tuple[str, str]:
    """Return (prompt, reply) in a template drawn by one `rng.choices`. A blank input counts as none."""
    slots = {"instruction": instruction.strip(), "input": input_.strip(), "output": output.strip()}
    templates = WITH_INPUT if slots["input"] else WITHOUT_INPUT
    (template,) = rng.choices(templates, weights=[template.weight for template in templates])
    return template.prompt.format(**slots), template.reply.format(**slots)
