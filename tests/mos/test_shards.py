import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import check_indices, factor, lora_bound

from mos.files import compact
from mos.shards import PoolLayout, assemble, init_bound, sample_indices
from mos.streams import stream


@st.composite
def layouts(draw):
    """Any valid layout and a block of it."""
    blocks, e, shards = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 3, 4, 8]))
    p = draw(st.integers(0, e))
    r = draw(st.integers(max(p, 1), p + (e - p) * blocks))
    return PoolLayout(blocks, e, shards, p, r), draw(st.integers(0, blocks - 1))


@settings(max_examples=200)
@given(layouts(), st.integers(0, 2**32))
def test_indices_are_distinct_public_shards_then_the_own_private_ones(case, seed):
    layout, block = case
    index = sample_indices(layout, block, stream(seed, "layer", "A"))
    check_indices(
        index, block, layout.blocks, layout.equivalent_rank, layout.shards_per_vector, layout.private_rank, layout.r
    )


@settings(max_examples=100)
@given(layouts())
def test_private_shards_partition_the_end_of_the_pool(case):
    layout, _ = case
    private = [shard for block in range(layout.blocks) for shard in layout.private(block).tolist()]
    assert private == list(range(layout.public, layout.size))


def test_indices_are_uniform():
    """Every public shard equally often: 3 of 6 drawn 4,000 times, within five standard deviations of a half."""
    layout = PoolLayout(blocks=3, equivalent_rank=2, shards_per_vector=1, private_rank=0, r=3)
    generator = torch.Generator().manual_seed(0)
    draws = torch.cat([sample_indices(layout, 0, generator).flatten() for _ in range(4000)])
    frequency = torch.bincount(draws, minlength=6) / 4000
    assert (frequency - 0.5).abs().max() < 5 * (0.25 / 4000) ** 0.5
    assert (draws.view(-1, 3)[:, 0].bincount() / 4000 - 1 / 6).abs().max() < 0.03  # and in any order


def test_whole_pool_in_order():
    layout = PoolLayout(blocks=4, equivalent_rank=2, shards_per_vector=1, private_rank=0, r=None)
    assert layout.rank == 8
    assert sample_indices(layout, 2, stream(0)).tolist() == [[i] for i in range(8)]


def test_streams_depend_on_seed_layer_and_factor_and_on_nothing_else():
    layout = PoolLayout(blocks=8, equivalent_rank=4, shards_per_vector=4, private_rank=1, r=8)

    def draw(*names):
        return sample_indices(layout, 0, stream(*names)).tolist()

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draw(0, "q", "A")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert draw(0, "q", "A") == first
    others = [draw(1, "q", "A"), draw(0, "k", "A"), draw(0, "q", "B"), draw(0, "qA")]
    assert all(other != first for other in others)


@pytest.mark.parametrize(("largest", "dtype"), [(32767, torch.int16), (32768, torch.int32)])
def test_saved_indices_are_compact(largest, dtype):
    index = torch.tensor([[0, largest]], dtype=torch.int32)
    assert compact(index).dtype == dtype
    assert torch.equal(compact(index).int(), index)


@pytest.mark.parametrize("h", [32, 768, 4096])
def test_initial_bound_is_that_of_lora(h):
    assert init_bound(h) == pytest.approx(lora_bound(h))


def test_assemble_by_hand():
    pool = torch.tensor([[1, 2], [3, 4], [5, 6]])
    index = torch.tensor([[2, 0], [1, 1]], dtype=torch.int32)
    assert assemble(pool, index).tolist() == [[5, 6, 1, 2], [3, 4, 3, 4]]


@settings(max_examples=50)
@given(layouts(), st.integers(1, 3), st.integers(0, 1000))
def test_assemble_agrees_with_the_loops(case, width, seed):
    """Indices may repeat here, as those of an adapter from elsewhere might."""
    layout, _ = case
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(layout.size, width, generator=generator)
    index = torch.randint(layout.size, (layout.r, layout.shards_per_vector), generator=generator).int()
    assert torch.equal(assemble(pool, index), factor(pool, index))


@pytest.mark.parametrize(
    ("layout", "sizes", "message"),
    [
        (
            PoolLayout(4, 2, 3, 1, 4),
            (12, 8),
            r"shards_per_vector=3 does not divide out_features=8 of 'q'.* of 4",
        ),
        (PoolLayout(4, 2, 8, 1, 4), (12, 8), r"shards_per_vector=8 does not divide in_features=12"),
        (
            PoolLayout(1, 2, 4, 1, 8),
            (12, 8),
            r"r=8 needs 28 .*'q'.*equivalent_rank=2.*1 block.*give 4. Use r <= 2",
        ),
        (PoolLayout(4, 2, 1, 0, 9), (12, 8), r"r=9 needs 9 .*give 8. Use r <= 8"),
    ],
)
def test_impossible_sizes(layout, sizes, message):
    with pytest.raises(ValueError, match=message):
        layout.check("q", *sizes)


@settings(max_examples=100)
@given(layouts())
def test_possible_sizes(case):
    layout, _ = case
    layout.check("q", 24, 48)
