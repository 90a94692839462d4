"""Where keys and values lie, who sees them, and that the host changes tables without moving them."""

from dataclasses import replace

import pytest
import torch

from streamchar.config import ChunkConfig, DiTConfig, PictureConfig, Preset, preset
from streamchar.kernels import KernelArgumentError
from streamchar.model.kv_cache import ROLES, SEGMENTS, KVCache
from tests.engine.small import SMALL


def small_preset() -> Preset:
    """Six tokens a latent frame, so that regions do not end on their alignment."""
    return replace(
        preset("tiny"),
        dit=DiTConfig(
            dim=128, layers=2, heads=2, head_dim=64, video_ffn=160, audio_ffn=96, audio_channels=32
        ),
        vae=SMALL.vae,
        picture=PictureConfig(height=32, width=48, spatial_stride=8, channels=16, patch=2),
        chunk=ChunkConfig(latent_frames=3, sink_latents=3, motion_latents=2),
    )


def addresses(memory: KVCache) -> list[int]:
    tensors = [*memory.k, *memory.v]
    for tables in memory.tables.values():
        tensors += [tables.slots, tables.segments, tables.cos, tables.sin]
    return [tensor.data_ptr() for tensor in tensors]


def lengths(memory: KVCache, role: str, row: int = 0) -> list[int]:
    return memory.tables[role].segments[row, :, 1].tolist()


def test_regions_follow_one_another_on_aligned_starts(device):
    memory = KVCache(small_preset(), device=device)
    assert memory.regions == {
        "reference": (0, 6),
        "sink": (16, 18),
        "motion": (48, 12),
        "video": (64, 18),
        "audio": (96, 12),
    }
    assert memory.capacity == 112


def test_the_5b_memory_has_the_designs_slots():
    memory = KVCache(preset("5b"), device="meta", dtype=torch.bfloat16)
    assert memory.capacity == 6432
    assert memory.nbytes == 2 * 2 * 30 * 6432 * 3072
    assert memory.k[0].shape == (1, 6432, 24, 128)


def test_every_role_writes_its_own_region_in_token_order(device):
    memory = KVCache(small_preset(), batch=2, device=device)
    for role, names in zip(ROLES, (["reference"], ["sink"], ["motion"], ["video", "audio"])):
        spans = [memory.regions[name] for name in names]
        expected = [slot for start, length in spans for slot in range(start, start + length)]
        assert memory.tables[role].slots.tolist() == [expected, expected]


def test_a_new_memory_shows_each_role_nothing_but_itself(device):
    memory = KVCache(small_preset(), device=device)
    assert lengths(memory, "reference") == [6, 0, 0, 0, 0]
    assert lengths(memory, "sink") == [0, 18, 0, 0, 0]
    assert lengths(memory, "motion") == [0, 0, 12, 0, 0]
    assert lengths(memory, "chunk") == [0, 0, 0, 18, 12]
    assert all(not buffer.any() for buffer in (*memory.k, *memory.v))


def test_valid_conditioning_is_seen_by_later_roles_of_that_row_alone(device):
    memory = KVCache(small_preset(), batch=2, device=device)
    before = addresses(memory)
    memory.set_valid(1, reference=True, sink=True, motion=True)
    assert lengths(memory, "reference", 1) == [6, 0, 0, 0, 0]
    assert lengths(memory, "sink", 1) == [6, 18, 0, 0, 0]
    assert lengths(memory, "motion", 1) == [6, 18, 12, 0, 0]
    assert lengths(memory, "chunk", 1) == [6, 18, 12, 18, 12]
    assert lengths(memory, "chunk", 0) == [0, 0, 0, 18, 12]
    memory.set_valid(1, sink=False)
    assert lengths(memory, "chunk", 1) == [6, 0, 12, 18, 12]
    assert lengths(memory, "motion", 1) == [6, 0, 12, 0, 0]
    assert lengths(memory, "sink", 1) == [6, 18, 0, 0, 0]
    starts = [start for start, _ in memory.regions.values()]
    for role in ROLES:
        assert memory.tables[role].segments[:, :, 0].tolist() == [starts, starts]
    assert addresses(memory) == before


def test_reset_forgets_one_row_and_leaves_the_others(device):
    memory = KVCache(small_preset(), batch=2, device=device)
    before = addresses(memory)
    for row in range(2):
        memory.set_valid(row, reference=True, sink=True, motion=True)
    for buffer in (*memory.k, *memory.v):
        buffer.fill_(float("nan"))
    memory.reset(0)
    assert lengths(memory, "chunk", 0) == [0, 0, 0, 18, 12]
    assert lengths(memory, "chunk", 1) == [6, 18, 12, 18, 12]
    for buffer in (*memory.k, *memory.v):
        assert not buffer[0].any()
        assert buffer[1].isnan().all()
    assert addresses(memory) == before


def test_a_row_shares_storage_and_tables_with_the_whole(device):
    memory = KVCache(small_preset(), batch=3, device=device)
    row = memory.row(1)
    assert row.batch == 1
    row.set_valid(0, reference=True)
    assert [lengths(memory, "chunk", index)[0] for index in range(3)] == [0, 6, 0]
    row.k[0].fill_(1.0)
    assert [memory.k[0][index].mean().item() for index in range(3)] == [0.0, 1.0, 0.0]
    assert memory.batch == 3


def test_rows_that_are_not_due_have_no_slots(device):
    tables = KVCache(small_preset(), batch=2, device=device).tables["sink"]
    masked = tables.where(torch.tensor([False, True], device=device))
    assert masked.slots.dtype == torch.int32
    assert (masked.slots[0] == -1).all()
    assert torch.equal(masked.slots[1], tables.slots[1])
    assert masked.segments is tables.segments


def test_time_is_relative_to_the_chunk_and_shared_by_both_modalities(device):
    # The first pair turns by time itself: its angle in radians is the token's time in latent frames.
    memory = KVCache(small_preset(), device=device)

    def times(role: str) -> list[float]:
        tables = memory.tables[role]
        return torch.atan2(tables.sin[:, 0], tables.cos[:, 0]).double().tolist()

    def wrapped(values: list[float]) -> list[float]:
        radians = torch.tensor(values, dtype=torch.float64)
        return torch.atan2(radians.sin(), radians.cos()).tolist()

    def frames(first: int, last: int) -> list[float]:
        return wrapped([frame for frame in range(first, last) for _ in range(6)])

    assert times("motion") == pytest.approx(frames(-2, 0), abs=1e-6)
    assert times("sink") == pytest.approx(frames(-6, -3), abs=1e-6)
    assert times("reference") == pytest.approx(frames(-7, -6), abs=1e-6)
    audio = wrapped([token / 4 for token in range(12)])
    assert times("chunk") == pytest.approx(frames(0, 3) + audio, abs=1e-6)


@pytest.mark.parametrize(("sink", "motion"), [(0, 3), (3, 0), (0, 0), (1, 1)])
def test_what_is_kept_of_sink_and_motion_moves_no_other_token_in_time(sink, motion):
    config = small_preset()
    whole, part = (
        KVCache(replace(config, chunk=replace(config.chunk, sink_latents=kept[0], motion_latents=kept[1])))
        for kept in ((3, 3), (sink, motion))
    )
    for role in ("reference", "chunk"):
        assert torch.equal(whole.tables[role].cos, part.tables[role].cos)
    # The first latents of the sink and the last of the motion stand where they always stood.
    assert torch.equal(part.tables["sink"].cos, whole.tables["sink"].cos[: 6 * sink])
    assert torch.equal(part.tables["motion"].cos, whole.tables["motion"].cos[18 - 6 * motion :])


def test_a_region_of_nothing_has_no_slots_and_is_never_seen():
    config = small_preset()
    config = replace(config, chunk=replace(config.chunk, sink_latents=0, motion_latents=0))
    memory = KVCache(config)
    assert memory.regions["sink"] == memory.regions["motion"] == (16, 0)
    assert memory.regions["video"] == (16, 18)
    assert memory.tables["sink"].slots.shape == (1, 0)
    memory.set_valid(0, reference=True, sink=True, motion=True)
    assert lengths(memory, "chunk") == [6, 0, 0, 18, 12]


def test_segments_are_named_in_the_order_of_their_table():
    assert tuple(KVCache(small_preset()).regions) == SEGMENTS


@pytest.mark.parametrize("row", [-1, 2])
@pytest.mark.parametrize("call", ["set_valid", "reset", "row"])
def test_a_row_that_is_not_there_is_refused(call, row):
    memory = KVCache(small_preset(), batch=2)
    with pytest.raises(KernelArgumentError, match="row must be between 0 and 1"):
        getattr(memory, call)(row)


def test_a_memory_that_cannot_be_is_refused():
    with pytest.raises(KernelArgumentError, match="batch must be at least 1"):
        KVCache(small_preset(), batch=0)
    with pytest.raises(KernelArgumentError, match="dtype must be bfloat16"):
        KVCache(small_preset(), dtype=torch.int32)
