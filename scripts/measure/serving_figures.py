"""The figures of the serving bench, in the order of its table."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from scripts.measure import serving_engine as ask
from scripts.measure.serving_bench import Bench, Measured, exact, in_turns, neighbours, percentiles, zipf
from scripts.measure.serving_engine import Engine, Streamed

ACTIVE = 8  # adapters that decode at the same time where the time of a step is measured
FEW = 10  # registered adapters
STEPS = 40
TYPES = 7  # layer types of a Llama


def bytes_held(bench: Bench) -> list[Measured]:
    sizes = bench.sizes
    (native, shared), (exported, _) = (
        bench.small.ask(ask.bytes_held, bench.folder(sizes.small, form, 0)) for form in ("mos", "lora")
    )
    detail = f"{native:,} / {exported:,} bytes; besides {shared:,} bytes of indices, once for all adapters of a seed"
    aim = 1.03 * sizes.small_e / sizes.small_r
    return [Measured("Bytes held of an adapter: native / exported", exact(native / exported), detail, aim)]


def cold(bench: Bench) -> list[Measured]:
    """Each round is another adapter, which nothing has read; its files are on the disk, or in the system's cache."""
    sizes, forms = bench.sizes, ("mos", "packed", "lora")
    spans = {
        "File to first token": (ask.first_token, True),
        "Of it, file to slot": (ask.into_slot, True),
        "File in the system's cache to first token": (ask.first_token, False),
    }

    def arm(engine: Engine, task: Callable[..., float], on_disk: bool, form: str, turn: int) -> float:
        folder = bench.folder(sizes.small, form, turn % sizes.adapters)
        if on_disk:
            ask.uncache(folder)
        return engine.ask(task, folder)

    rows = []
    with bench.engine(sizes.small) as fresh:
        for span, (task, on_disk) in spans.items():
            found = in_turns(sizes.cold, {form: partial(arm, fresh, task, on_disk, form) for form in forms})
            rows += cold_rows(span, found)
    return rows


def cold_rows(span: str, found: dict[str, list[float]]) -> list[Measured]:
    """Both percentiles of both native forms, against the exported one."""
    rows = []
    for form, name in (("mos", "native, as saved"), ("packed", "native, packed")):
        for q in (50, 99):
            detail = " / ".join(f"{1e3 * np.percentile(found[each], q):.1f}" for each in (form, "lora"))
            ratio = percentiles(found[form], found["lora"], q)
            rows.append(Measured(f"{span} of a cold adapter, p{q}: {name} / exported", ratio, f"{detail} ms", aim=0.5))
    return rows


def operations(bench: Bench) -> list[Measured]:
    base = bench.sizes.small
    double = replace(base, blocks=2 * base.blocks, adapters=1)
    with bench.engine(double, on_host=bench.sizes.slots) as long:
        many, few, exported, fewer = (
            engine.ask(ask.operations, bench.folder(each, form, 0))
            for form in ("mos", "lora")
            for engine, each in ((long, double), (bench.small, base))
        )
    between = f"at {double.blocks} blocks / at {base.blocks}"
    detail = f"{many} / {few} operations; exported {exported} / {fewer}"
    return [
        Measured(f"Tensor-writing operations of an activation, {between}", exact(many / few), detail, 1.0),
        Measured("The same for a layer type", exact(many / TYPES), f"{many} operations, {TYPES} layer types", 6),
    ]


def registered(bench: Bench) -> list[Measured]:
    sizes = bench.sizes
    label = f"Time of a step at {sizes.registered:,} registered adapters / at {FEW}"

    def compared(name: str, engine: Engine, form: str, aim: float | None) -> Measured:
        active = bench.folders(sizes.small, form, range(ACTIVE))

        def arm(count: int, turn: int) -> float:
            return engine.ask(ask.step_seconds, active, count, STEPS)

        found = in_turns(sizes.rounds, {str(count): partial(arm, count) for count in (sizes.registered, FEW)})
        many, few = found.values()
        detail = f"{1e3 * median(many):.2f} / {1e3 * median(few):.2f} ms, {ACTIVE} adapters active"
        return Measured(f"{label}, {name}", neighbours(many, few), detail, aim)

    rows = [compared("MoS", bench.small, "mos", 1.02)]
    with bench.engine(sizes.small, plugin=False) as alone:
        return [*rows, compared("vLLM alone, LoRA", alone, "lora", None)]


def streaming(
    bench: Bench,
    engine: Engine,
    prompt: int,
    asked: Callable[[int], Sequence[Path | None]],
    turn: int,
    on_disk: bool = False,
) -> Streamed:
    sizes = bench.sizes
    return engine.ask(
        ask.stream, asked(turn), seed=turn, prompt=prompt, tokens=sizes.tokens, together=sizes.slots, on_disk=on_disk
    )


def rate(rounds: Sequence[Streamed]) -> list[float]:
    """Requests a second of each round."""
    return [len(each.first) / each.seconds for each in rounds]


def many(bench: Bench) -> list[Measured]:
    sizes = bench.sizes

    def drawn(turn: int) -> list[Path]:
        return bench.folders(sizes.large, "mos", zipf(turn, sizes.large_requests, sizes.adapters))

    def single(turn: int) -> list[Path]:
        return bench.folders(sizes.large, "mos", [0] * sizes.large_requests)

    arms = {"many": drawn, "one": single}
    found = in_turns(
        sizes.rounds, {name: partial(streaming, bench, bench.large, sizes.large_prompt, arms[name]) for name in arms}
    )
    thousand, one = (rate(found[name]) for name in ("many", "one"))
    figure = f"Throughput with {sizes.adapters:,} adapters (Zipf 1.0) / with one, same requests"
    detail = f"{median(thousand):.2f} / {median(one):.2f} requests/s"
    return [Measured(figure, neighbours(thousand, one), detail, 0.9, at_least=True)]


def memory(bench: Bench) -> list[Measured]:
    """All adapters native; exported as many as take the same bytes, and the others are read from the disk."""
    sizes = bench.sizes
    one, other = (bench.small.ask(ask.bytes_held, bench.folder(sizes.small, form, 0))[0] for form in ("mos", "lora"))
    fitting = max(sizes.adapters * one // other, sizes.slots)

    def drawn(form: str, turn: int) -> list[Path]:
        return bench.folders(sizes.small, form, zipf(turn, sizes.small_requests, sizes.adapters))

    with bench.engine(sizes.small, on_host=fitting) as exporting:
        # the adapters that are asked for most, the first of them used last
        exporting.ask(ask.hold, bench.folders(sizes.small, "lora", range(fitting))[::-1])
        arms = {"mos": bench.small, "lora": exporting}
        found = in_turns(
            sizes.rounds,
            {
                form: partial(streaming, bench, engine, sizes.small_prompt, partial(drawn, form), on_disk=True)
                for form, engine in arms.items()
            },
        )
    native, exported = (rate(found[form]) for form in arms)
    held = f"{sizes.adapters:,} adapters on the host / {fitting:,} of them"
    tails = {form: [float(np.percentile(each.first, 99)) for each in found[form]] for form in arms}
    waits = " / ".join(f"{1e3 * median(tails[form]):.0f}" for form in arms)
    return [
        Measured(
            "Requests a second at equal memory: native / exported",
            neighbours(native, exported),
            f"{median(native):.2f} / {median(exported):.2f} requests/s; {held}",
            1.5,
            at_least=True,
        ),
        Measured(
            "p99 to first token at equal memory: native / exported",
            neighbours(tails["mos"], tails["lora"]),
            f"{waits} ms",
        ),
    ]


def idle(bench: Bench) -> list[Measured]:
    """A server with the plugin that is asked for no MoS adapter."""
    sizes = bench.sizes
    lora = bench.folders(sizes.large, "lora", range(ACTIVE))

    def asked(adapters: Sequence[Path | None], turn: int) -> list[Path | None]:
        return [adapters[number % len(adapters)] for number in range(sizes.large_requests)]

    rows = []
    with bench.engine(sizes.large, plugin=False) as alone:
        for name, adapters in (("no adapter", [None]), (f"{ACTIVE} LoRA adapters", lora)):
            arms = {"mos": bench.large, "alone": alone}
            found = in_turns(
                sizes.rounds,
                {
                    arm: partial(streaming, bench, engine, sizes.large_prompt, partial(asked, adapters))
                    for arm, engine in arms.items()
                },
            )
            ours, theirs = ([each.seconds for each in found[arm]] for arm in arms)
            figure = f"Time of requests with {name}: a MoS server / vLLM without the plugin"
            detail = f"{median(ours):.2f} / {median(theirs):.2f} s for {sizes.large_requests} requests"
            rows.append(Measured(figure, neighbours(ours, theirs), detail, 1.0))
    return rows


FIGURES: dict[str, Callable[[Bench], list[Measured]]] = {
    "bytes": bytes_held,
    "cold": cold,
    "operations": operations,
    "registered": registered,
    "many": many,
    "memory": memory,
    "idle": idle,
}
