import json
import random

import pytest

from data_prep.files import Tally
from data_prep.readers import code_alpaca, flan, messages, super_ni
from data_prep.readers.templates import WITH_INPUT, WITHOUT_INPUT, fill

# the tables of docs/protocol.md, Templates, in its notation: i instruction, x input
PUBLISHED_WITH = (
    "i⏎⏎x⏎⏎|i⏎x⏎⏎|i⏎x⏎|i⏎⏎Input: x⏎⏎Output:|i⏎Input: x⏎Output:|i⏎x⏎⏎Response:"
    "|i⏎⏎Additional Context:⏎x⏎⏎Answer:|Task: i⏎Input: x⏎Output:|Task: i⏎⏎x⏎⏎|Task: i⏎⏎x⏎⏎Answer:"
    "|You need to complete the following task:⏎⏎i⏎⏎x⏎⏎Answer:"
    "|i⏎⏎Now complete the following instance -⏎Input: x⏎Output:|Instruction:i⏎⏎Input: x⏎⏎"
    "|Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.⏎⏎### Instruction:⏎i⏎⏎### Input:⏎x⏎⏎### Response:"
)
PUBLISHED_WITHOUT = (
    "i⏎⏎|i⏎|i|i Output:|i⏎Response:|i⏎⏎Answer:|Task: i⏎⏎|Instruction: i⏎|Instruction: i⏎Output:"
    "|You need to complete the following task:⏎⏎i⏎⏎|Can you help with this?⏎⏎i⏎"
    "|Plase answer the following request: i⏎Answer:|Tell me how would you respond to the following request.⏎i⏎"
    "|Write a response that appropriately completes the request.⏎⏎### Instruction:⏎i⏎⏎### Response:"
)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [path]


def prompts(rows):
    return [row["messages"][0]["content"] for row in rows]


def replies(rows):
    return [row["messages"][1]["content"] for row in rows]


# templates


@pytest.mark.parametrize("templates, published", [(WITH_INPUT, PUBLISHED_WITH), (WITHOUT_INPUT, PUBLISHED_WITHOUT)])
def test_templates_are_the_published_ones_with_their_weights(templates, published):
    texts = [template.prompt.format(instruction="<i>", input="<x>") for template in templates]
    with_slots = [text.replace("<i>", "i").replace("<x>", "x").replace("\n", "⏎") for text in texts]
    assert with_slots == published.split("|")
    assert [template.weight for template in templates] == [0.2, 0.1, 0.1, *[0.05] * 10, 0.1]


def test_only_the_third_template_without_input_starts_the_reply_on_a_new_line():
    assert [template.reply for template in WITHOUT_INPUT].index("\n{output}") == 2
    assert sum(template.reply != "{output}" for template in WITH_INPUT + WITHOUT_INPUT) == 1


def test_a_blank_input_counts_as_none_and_slots_are_stripped_but_braces_are_kept():
    prompt, completion = fill(" do {this} \n", " \n\t", " {done} ", random.Random(0))
    assert prompt in {template.prompt.format(instruction="do {this}") for template in WITHOUT_INPUT}
    assert completion.strip() == "{done}"


def test_templates_are_drawn_with_their_weights():
    rng, n = random.Random(0), 20_000
    drawn = [fill("i", "x", "o", rng)[0] for _ in range(n)]
    assert drawn.count("i\n\nx\n\n") / n == pytest.approx(0.2, abs=0.01)
    assert drawn.count("Instruction:i\n\nInput: x\n\n") / n == pytest.approx(0.05, abs=0.01)


# super_ni


def super_ni_files(folder, tasks, names=None):
    for name, (instances, examples) in tasks.items():
        document = {
            "Definition": [f" {name}. ", "another"],
            "Positive Examples": [{"input": f"p{i}", "output": f"q{i} "} for i in range(examples)],
            "Instances": [{"id": f"{name}-{i}", "input": f" x{i}", "output": [f"y{i}", "z"]} for i in range(instances)],
        }
        (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    split = folder / "train_tasks.txt"
    split.write_text("".join(f"{name}\n" for name in names or tasks), encoding="utf-8")
    return {"split": [split], "tasks": sorted(folder.glob("*.json"))}


def original_super_ni(tasks):
    """The sampling of the original script, with the global generator: (id, zero-shot template or examples)."""
    random.seed(42)
    for name, (instances, examples) in tasks.items():
        chosen = list(range(instances))
        if instances > 80:
            chosen = random.sample(chosen, k=80)
        for i in chosen[:60]:
            yield f"super_ni_{name}-{i}", random.choices(WITH_INPUT, weights=[t.weight for t in WITH_INPUT])[0]
        for i in chosen[60:]:
            yield f"super_ni_{name}-{i}", random.sample(range(examples), k=2) if examples > 2 else list(range(examples))


def test_super_ni_samples_as_the_original_script(tmp_path):
    tasks = {"task2_b": (200, 5), "task1_a": (70, 2), "task3_c": (80, 1), "task4_d": (81, 3)}
    tally = Tally()
    rows = list(super_ni.read(super_ni_files(tmp_path, tasks), tally, per_task=80, zero_shot=60))
    expected = list(original_super_ni(tasks))
    assert [row["id"] for row in rows] == [id_ for id_, _ in expected]
    assert (len(rows), tally.lines, tally.broken) == (80 + 70 + 80 + 80, 431, [])
    for row, (id_, how) in zip(rows, expected, strict=True):
        task, number = id_.removeprefix("super_ni_").split("-")
        if isinstance(how, list):
            shots = "".join(f"Input:\np{i}\nOutput:\nq{i}\n\n" for i in how)
            prompt = f"{task}.\n\n{shots}Input:\nx{number}\nOutput:\n"
        else:
            prompt = how.prompt.format(instruction=f"{task}.", input=f"x{number}")
        assert row["messages"] == [{"role": "user", "content": prompt}, {"role": "assistant", "content": f"y{number}"}]
        assert row["dataset"] == "super_ni"


def test_super_ni_leaves_out_tasks_made_of_mmlu(tmp_path):
    files = super_ni_files(tmp_path, {"task1_mmmlu_x": (3, 1), "task2_y": (2, 1)})
    assert len(list(super_ni.read(files, Tally(), per_task=80, zero_shot=60))) == 2


def test_super_ni_names_a_task_without_file(tmp_path):
    files = super_ni_files(tmp_path, {"task1": (3, 1)}, names=["task1", "task9_gone"])
    with pytest.raises(FileNotFoundError, match=r"names task 'task9_gone', but .* has no task9_gone\.json"):
        list(super_ni.read(files, Tally(), per_task=80, zero_shot=60))


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"Definition": "text"}, "field 'Definition' must be list, got str"),
        ({"Definition": []}, "field 'Definition' holds no text"),
        ({"Instances": None}, "field 'Instances' must be list"),
        ({"Positive Examples": [{"input": "x"}]}, "field 'output' is missing"),
    ],
)
def test_super_ni_stops_at_a_task_without_a_needed_field(tmp_path, change, reason):
    files = super_ni_files(tmp_path, {"task1": (3, 1)})
    path = tmp_path / "task1.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"task1\.json: {reason}"):
        list(super_ni.read(files, Tally(), per_task=80, zero_shot=60))


def test_super_ni_reports_a_broken_instance_by_its_index(tmp_path):
    files = super_ni_files(tmp_path, {"task1": (4, 1)})
    path = tmp_path / "task1.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["Instances"][1]["input"]
    document["Instances"][2]["output"] = []
    path.write_text(json.dumps(document), encoding="utf-8")
    tally = Tally()
    rows = list(super_ni.read(files, tally, per_task=80, zero_shot=60))
    assert [row["id"] for row in rows] == ["super_ni_task1-0", "super_ni_task1-3"]
    assert tally.broken == [f"{path}[1]: field 'input' is missing", f"{path}[2]: field 'output' is empty"]


# flan_v2 and cot


@pytest.mark.parametrize(
    "inputs, prompt",
    [("a", "a\n"), ("a ", "a \n"), ("a\n", "a\n"), ("a:", "a:"), ("a: \t", "a: \t"), ("", "\n"), (" a\n\n", " a\n\n")],
)
def test_flan_ends_the_prompt_with_a_newline_unless_a_colon_does(tmp_path, inputs, prompt):
    files = {"rows": write_lines(tmp_path / "rows.jsonl", [{"inputs": inputs, "targets": " t\n", "other": 1}])}
    (row,) = flan.read_flan_v2(files, Tally())
    assert row == {
        "dataset": "flan_v2",
        "id": "flan_v2_0",
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": " t\n"}],
    }


def test_cot_samples_each_file_in_turn_as_the_original_script(tmp_path):
    zero, few = ([{"inputs": f"{kind}{i}", "targets": str(i)} for i in range(n)] for kind, n in (("z", 30), ("f", 20)))
    files = {
        "zero_shot": write_lines(tmp_path / "cot_zsopt.jsonl", zero),
        "few_shot": write_lines(tmp_path / "cot_fsopt.jsonl", few),
    }
    rows = list(flan.read_cot(files, Tally(), per_file=20))
    random.seed(42)
    expected = [f"z{i}\n" for i in random.sample(range(30), k=20)] + [f"f{i}\n" for i in range(20)]
    assert prompts(rows) == expected
    assert [row["id"] for row in rows] == [f"cot_{n}" for n in range(40)]


# code_alpaca


def test_code_alpaca_keeps_order_and_draws_a_template_per_row(tmp_path):
    items = [{"instruction": f"i{n}", "input": "x" * (n % 2), "output": f"o{n}"} for n in range(50)]
    path = tmp_path / "code_alpaca_20k.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    rows = list(code_alpaca.read({"rows": [path]}, Tally()))
    random.seed(42)
    for item, row in zip(items, rows, strict=True):
        templates = WITH_INPUT if item["input"] else WITHOUT_INPUT
        (template,) = random.choices(templates, weights=[t.weight for t in templates])
        assert prompts([row]) == [template.prompt.format(**item)]
        assert replies([row]) == [template.reply.format(**item)]
    assert [row["id"] for row in rows[:2]] == ["code_alpaca_0", "code_alpaca_1"]


def test_code_alpaca_reports_a_broken_row_by_its_index(tmp_path):
    path = tmp_path / "code_alpaca_2k.json"
    path.write_text(
        json.dumps([{"instruction": "i", "input": "", "output": "o"}, {"instruction": "i", "output": "o"}]),
        encoding="utf-8",
    )
    tally = Tally()
    assert len(list(code_alpaca.read({"rows": [path]}, tally))) == 1
    assert tally.broken == [f"{path}[1]: field 'input' is missing"]


# messages


def test_messages_are_taken_as_they_are(tmp_path):
    talk = [{"role": r, "content": c} for r, c in (("system", "s"), ("user", " u"), ("assistant", "a"), ("user", "v"))]
    given = [{"dataset": "d", "id": "d_7", "messages": talk}, {"messages": talk[:1]}]
    rows = list(messages.read({"messages": write_lines(tmp_path / "m.jsonl", given)}, Tally()))
    assert rows == [given[0], {"dataset": "messages", "id": "", "messages": talk[:1]}]


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"messages": []}, "field 'messages' is empty"),
        ({"text": "x"}, "field 'messages' is missing"),
        ({"messages": [{"role": "tool", "content": ""}]}, "role 'tool' is not one of system, user, assistant"),
        ({"messages": [{"role": "user"}]}, "field 'content' is missing"),
        ({"messages": ["x"]}, "a JSON object is needed, got str"),
    ],
)
def test_broken_messages_are_reported(tmp_path, row, reason):
    tally = Tally()
    (path,) = write_lines(tmp_path / "m.jsonl", [row])
    assert not list(messages.read({"messages": [path]}, tally))
    assert tally.broken == [f"{path}:1: {reason}"]
