from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_action.generation.rollout import rollout
from lightning_action.generator import attention
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.image import ImageCondition
from lightning_action.generator.kv_cache import KVCache
from lightning_action.generator.model import CausalWanModel
from lightning_action.generator.network import velocity_from_residual
from tests.support.attentions import watch_dtypes
from tests.support.small_generator import small_generator, small_inputs
from tests.support.small_rollout import session

CAUSALITIES = [
    BlockCausality(1),
    BlockCausality(3),
    BlockCausality(2, 4),
    BlockCausality(1, 3, 1),
    BlockCausality(1, independent_first_frame=True),
]


def run(generator: CausalWanModel, mode: str, x: dict[str, Tensor], causality: BlockCausality) -> Tensor:
    if mode == "block_causal":
        return generator.block_causal(x["noisy"], x["timestep"], x["text"], causality, x["modulation"])
    return generator.teacher_forcing(x["clean"], x["noisy"], x["timestep"], x["text"], causality, x["modulation"])


def test_a_fresh_model_predicts_zero() -> None:
    torch.manual_seed(0)
    generator = CausalWanModel(12, 16, 2, 1, in_dim=3, out_dim=3, freq_dim=8, text_dim=5, text_len=4)
    out = generator(torch.randn(2, 2, 3, 4, 2), torch.rand(2, 2), torch.randn(2, 4, 5))
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("mode", ["bidirectional", "of_an_image", "block_causal", "teacher_forcing", "cached", "after"])
@torch.no_grad()
def test_what_a_preconditioned_model_gives_is_read_as_a_residual(mode: str) -> None:
    """Of the frames that are predicted, at their own noise levels, in every mode."""
    x, causality = small_inputs(4), BlockCausality(2)
    noisy, timestep = x["noisy"], x["timestep"]
    in_dim = 8 if mode == "of_an_image" else 5

    def predict(preconditioned: bool) -> Tensor:
        generator = small_generator(preconditioned=preconditioned, in_dim=in_dim)
        if mode == "bidirectional":
            return generator(noisy, timestep, x["text"], x["modulation"])
        if mode == "of_an_image":
            return generator(noisy, timestep, x["text"], None, ImageCondition(x["clean"][:, :, :3]))
        if mode in ("block_causal", "teacher_forcing"):
            return run(generator, mode, x, causality)
        text, cache = generator.text_cache(x["text"]), KVCache(2, 2, 3, 12, 6, 99, causality)
        generator.write(x["clean"][:, :2], text, cache)
        block, levels = noisy[:, 2:], timestep[:, 2:]
        if mode == "cached":
            return generator.denoise(block, levels, text, cache)
        past = [cache.of_frame(0), cache.of_frame(1)]
        return generator.denoise_after(past, range(2, 4), block, levels, text)

    residual, velocity = predict(False), predict(True)
    num_frames = residual.shape[1]
    expected = velocity_from_residual(residual, noisy[:, -num_frames:], timestep[:, -num_frames:])
    assert torch.equal(velocity, expected) and not torch.allclose(velocity, residual, atol=0.1)


@pytest.mark.parametrize("small_block", [0, 32], ids=["by_block", "masked"])
@pytest.mark.parametrize("causality", CAUSALITIES)
@pytest.mark.parametrize(
    ("mode", "changed"),
    [("block_causal", name) for name in ("noisy", "timestep", "modulation")]
    + [("teacher_forcing", name) for name in ("noisy", "timestep", "modulation", "clean")],
)
@torch.no_grad()
def test_no_frame_sees_the_future(
    mode: str, causality: BlockCausality, changed: str, small_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_SMALL_BLOCK", small_block)
    generator, x = small_generator(), small_inputs(6)
    before = run(generator, mode, x, causality)
    frame = 2
    block = next(block for block in causality.split(6) if frame in block)
    y = {**x, changed: x[changed].clone()}
    y[changed][:, frame] += 0.5
    after = run(generator, mode, y, causality)
    # In teacher forcing a clean frame is seen by later blocks only.
    first_seen = block.stop if changed == "clean" else block.start
    assert torch.equal(before[:, :first_seen], after[:, :first_seen])
    assert not torch.equal(before[:, first_seen:], after[:, first_seen:])


@torch.no_grad()
def test_bidirectional_sees_the_future_and_takes_actions() -> None:
    generator, x = small_generator(), small_inputs(5)
    before = generator(x["noisy"], x["timestep"], x["text"], x["modulation"])
    y = x["modulation"].clone()
    y[:, 4] += 0.5
    assert not torch.equal(before[:, 0], generator(x["noisy"], x["timestep"], x["text"], y)[:, 0])


@pytest.mark.parametrize("mode", ["block_causal", "teacher_forcing"])
@torch.no_grad()
def test_zero_modulation_is_no_modulation(mode: str) -> None:
    generator, x = small_generator(), small_inputs(4)
    base = run(generator, mode, {**x, "modulation": None}, BlockCausality(2))  # type: ignore[dict-item]
    zero = run(generator, mode, {**x, "modulation": torch.zeros_like(x["modulation"])}, BlockCausality(2))
    assert torch.equal(base, zero)
    assert not torch.equal(base, run(generator, mode, x, BlockCausality(2)))


@torch.no_grad()
def test_modulation_per_layer() -> None:
    generator, x = small_generator(), small_inputs(4)
    shared = run(generator, "block_causal", x, BlockCausality(2))
    repeated = x["modulation"][:, :, None].expand(-1, -1, 2, -1, -1)
    assert torch.equal(shared, run(generator, "block_causal", {**x, "modulation": repeated}, BlockCausality(2)))
    other = repeated.clone()
    other[:, :, 1] *= 2
    assert not torch.equal(shared, run(generator, "block_causal", {**x, "modulation": other}, BlockCausality(2)))


def test_modulation_of_another_shape_is_refused() -> None:
    generator, x = small_generator(), small_inputs(4)
    with pytest.raises(ValueError, match=r"action_modulation must be.*got \[2, 3, 6, 36\]"):
        run(generator, "block_causal", {**x, "modulation": x["modulation"][:, :3]}, BlockCausality(2))
    of_three_layers = x["modulation"][:, :, None].expand(-1, -1, 3, -1, -1)
    with pytest.raises(ValueError, match=r"num_layers = 2 before the 6; got \[2, 4, 3, 6, 36\]"):
        run(generator, "block_causal", {**x, "modulation": of_three_layers}, BlockCausality(2))


@pytest.mark.parametrize(("height", "width", "num_frames"), [(8, 16, 2), (8, 15, 2), (8, 17, 2), (16, 16, 2)])
@torch.no_grad()
def test_sequence_lengths_around_multiples_of_128(height: int, width: int, num_frames: int) -> None:
    """Whatever the number of tokens, each block of frames is what it is with fewer frames behind it."""
    generator = small_generator()
    x = small_inputs(num_frames, height=height, width=width)
    assert generator.tokens_per_frame(height, width) == height * width // 2
    whole = run(generator, "teacher_forcing", x, BlockCausality(1))
    first = {key: value if key == "text" else value[:, :1] for key, value in x.items()}
    torch.testing.assert_close(
        run(generator, "teacher_forcing", first, BlockCausality(1)), whole[:, :1], atol=1e-5, rtol=0
    )
    assert whole.shape == x["noisy"].shape and whole.abs().min() > 0


def test_under_bfloat16_autocast_tokens_queries_and_keys_are_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of the layers and the weights of the norms stay float32, and would make everything so."""

    def normalized(*arguments: Any, **named: Any) -> Tensor:
        return layer_norm(*arguments, **named).float()

    layer_norm = torch.nn.functional.layer_norm
    # As autocast on CUDA does.
    monkeypatch.setattr(torch.nn.functional, "layer_norm", normalized)
    generator, x = small_generator(), small_inputs(4)
    seen = watch_dtypes(generator, monkeypatch)
    expected = run(generator, "teacher_forcing", x, BlockCausality(2))
    assert set(seen) == {torch.float32} and len(seen) == 2 * 5
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        velocity = run(generator, "teacher_forcing", x, BlockCausality(2))
    assert set(seen) == {torch.bfloat16} and len(seen) == 2 * 5
    assert 0 < (velocity - expected).norm() / expected.norm() < 0.02
    velocity.square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.any() for p in generator.parameters())


@pytest.mark.parametrize("mode", ["block_causal", "teacher_forcing", "cached"])
@torch.no_grad()
def test_tokens_are_contiguous_in_every_layer(mode: str) -> None:
    generator, x, causality = small_generator(), small_inputs(6), BlockCausality(3)
    seen: list[bool] = []
    for layer in generator.blocks:
        layer.register_forward_hook(lambda _, given, out: seen.extend([given[0].is_contiguous(), out.is_contiguous()]))
    if mode == "cached":
        list(rollout(session(generator, x["text"], causality, 6), 6))
    else:
        run(generator, mode, x, causality)
    assert seen and all(seen)


class Trace(TorchDispatchMode):
    """Operations with their numbers, and the shapes, strides and places in the cache of their tensors."""

    def __init__(self, cache: KVCache) -> None:
        super().__init__()
        self.operations: list[tuple[str, ...]] = []
        self._cache = [stored.untyped_storage().data_ptr() for stored in (cache.keys, cache.values)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append((str(func), *map(self._told, tree_leaves((args, kwargs)))))
        return func(*args, **(kwargs or {}))

    def _told(self, value: Any) -> str:
        if not isinstance(value, Tensor):
            return str(value)
        is_cached = value.untyped_storage().data_ptr() in self._cache
        return f"{list(value.shape)} {value.stride()} {value.storage_offset() if is_cached else ''}"


@pytest.mark.parametrize("causality", [BlockCausality(2, 6, 2), BlockCausality(1, 4)])
@torch.no_grad()
def test_behind_a_full_window_every_pass_is_the_same_computation(
    causality: BlockCausality, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a captured graph needs: but for the positions that rotation counts from, no block differs from another."""
    generator, x, size = small_generator(), small_inputs(2, batch_size=1), causality.num_frame_per_block
    text, block = generator.text_cache(x["text"][:1]), x["noisy"][:1, :size]
    cache = KVCache(2, 1, 3, 12, 6, 99, causality)
    passes = [
        partial(generator.denoise, block, torch.full((1, size), 900.0), text, cache),
        partial(generator.denoise, block, torch.full((1, size), 500.0), text, cache),
        partial(generator.write, block, text, cache),
    ]
    blocks: list[list[list[tuple[str, ...]]]] = []
    for _ in range(9):
        traces = []
        for make_pass in passes:
            # The cache moves outside of the graph.
            with Trace(cache) as trace, monkeypatch.context() as patched:
                patched.setattr(cache, "advance", lambda: None)
                make_pass()
            traces.append([operation for operation in trace.operations if operation[0] != "aten.arange.start"])
        cache.advance()
        blocks.append(traces)
    assert all(traces == blocks[-4] for traces in blocks[-4:])
    assert blocks[0] != blocks[-4], "a window that fills is seen to differ"
    assert not any("_local_scalar_dense" in name for trace in blocks[-1] for name, *_ in trace)


class Devices(TorchDispatchMode):
    """Operations that touch tensors in memory of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.on_host: list[str] = []
        self.num_operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        self.num_operations += 1
        if any(isinstance(x, Tensor) and x.is_cpu for x in tree_leaves((args, kwargs, given))):
            self.on_host.append(str(func))
        return given


@torch.no_grad()
def test_a_block_brings_nothing_from_the_host() -> None:
    """The meta device stands for one that is not the host."""
    causality = BlockCausality(2, 6, 2)
    with torch.device("meta"):
        generator = CausalWanModel(36, 44, 3, 2, in_dim=5, out_dim=5, freq_dim=14, text_dim=9, text_len=90)
        block, modulation, timestep = torch.empty(1, 2, 5, 4, 6), torch.empty(1, 2, 6, 36), torch.empty(1, 2)
        text = generator.text_cache(torch.empty(1, 7, 9))
    cache = KVCache(2, 1, 3, 12, 6, 99, causality, device="meta")
    for _ in range(5):
        with Devices() as devices:
            generator.denoise(block, timestep, text, cache, modulation)
            generator.write(block, text, cache, modulation)
        assert devices.num_operations > 100 and devices.on_host == []
    with Devices() as devices:
        torch.zeros(2).to("meta")
    assert devices.on_host, "a copy from the host is seen"
