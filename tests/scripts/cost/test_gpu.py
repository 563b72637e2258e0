"""GPUs by name and by numbers, with assumed and with measured shares of the peak rate."""

from pathlib import Path

import pytest
import yaml

from scripts.cost import gpu
from scripts.cost.gpu import Gpu, fits


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`measured(**content)`: a file in a copy of configs/gpu, as a measurement on a GPU writes it."""
    folder = tmp_path / "gpu"
    folder.mkdir()
    (folder / "a100_40g.yaml").write_text((gpu.CONFIGS / "gpu" / "a100_40g.yaml").read_text())
    monkeypatch.setattr(gpu, "CONFIGS", tmp_path)
    monkeypatch.setattr(gpu, "choices", lambda group: [path.stem for path in (tmp_path / group).glob("*.yaml")])

    def write(**content: object) -> Gpu:
        base = {"name": "Mine", "memory_gib": 24.0, "tflops": 165.0}
        (folder / "mine.yaml").write_text(yaml.safe_dump(base | content))
        return Gpu.of("mine")

    return write


def test_a_gpu_by_numbers_assumes_the_shares_of_the_a100() -> None:
    own, known = Gpu.of("mine:24:165"), Gpu.of("a100_40g")
    assert (own.name, own.memory_gib, own.tflops) == ("mine", 24, 165)
    assert (own.training, own.decode) == (known.training, known.decode)
    assert own.hours(training=165e12 * 3600 * own.training) == pytest.approx(1)
    assert "measured" not in own.shares()


def test_measured_shares_replace_the_assumed_ones_and_are_marked(measured) -> None:
    own = measured(efficiency={"training": 0.5}, measured=["training"])
    assert own.hours(training=165e12 * 3600 * 0.5) == pytest.approx(1)
    assert own.prefill == Gpu.of("a100_40g").prefill
    assert own.shares() == "Mine training 0.5 (measured), prefill 0.4, decode 0.08"


@pytest.mark.parametrize("text", ["a100", "mine:24", "mine:24:fast", "mine:24:165:2", ""])
def test_an_unknown_gpu_is_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(ValueError, match=r"name:GiB:TFLOPs"):
        Gpu.of(text)


@pytest.mark.parametrize("text", ["mine:0:165", "mine:-24:165", "mine:24:nan", "mine:inf:165"])
def test_numbers_that_no_gpu_has_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"{text}: .* must be a number above 0"):
        Gpu.of(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"efficiency": {"training": 1.2}}, "configs/gpu/mine.yaml: training=1.2 must be a number above 0, at most 1"),
        ({"efficiency": {"training": "fast"}}, "training=fast must be a number"),
        ({"efficiency": {"trainin": 0.3}}, "Unknown share of the peak 'trainin'. Did you mean 'training'?"),
        ({"measured": ["speed"]}, "Unknown share of the peak 'speed'"),
        ({"memory_gib": None}, "memory_gib=None must be a number above 0"),
        ({"tflops": True}, "tflops=True must be a number above 0"),
    ],
)
def test_a_file_that_cannot_be_is_named_with_its_value(measured, content, message) -> None:
    with pytest.raises(ValueError) as caught:
        measured(**content)
    assert message in str(caught.value)


def test_a_gpu_given_twice_is_refused() -> None:
    assert [each.name for each in Gpu.all(["a100_40g", "mine:24:165"])] == ["A100-40G", "mine"]
    with pytest.raises(ValueError, match=r"gpus=\[...\] has A100-40G twice"):
        Gpu.all(["a100_40g", "h100_80g", "a100_40g"])


def test_fitting_leaves_the_reserve() -> None:
    own = Gpu.of("mine:24:165")
    assert fits((24 - gpu.RESERVE_GIB) * 2**30, own)
    assert not fits((24 - gpu.RESERVE_GIB) * 2**30 + 1, own)
