"""The whole pass as one graph, against the plain one; a CUDA graph of it needs a GPU."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from lightning_action.diffusion.noise import frame_noise
from lightning_action.generation.captured_pass import CapturedPass
from lightning_action.generation.rollout import CausalRollout, rollout
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.model import CausalWanModel
from lightning_action.generator.quantization import quantize_layers
from tests.support.small_generator import small_generator, small_inputs
from tests.support.small_rollout import SHAPE, session

LENGTH = 26


def generator_and_inputs() -> tuple[CausalWanModel, dict[str, Tensor]]:
    """Heads that fill vectors, whose complex and real rotation are equal to the bit."""
    x = small_inputs(LENGTH)
    return small_generator(dim=32, num_heads=2), {**x, "modulation": x["modulation"][..., :32]}


def video(run: CausalRollout, modulation: Any) -> Tensor:
    return torch.cat(list(rollout(run, LENGTH, modulation)), dim=1)


@pytest.mark.parametrize("context", ["clean", "last_step"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@torch.no_grad()
def test_one_graph_serves_all_steps_of_all_blocks(context: str, guidance: float) -> None:
    generator, x = generator_and_inputs()
    causality, graphs = BlockCausality(2, 6, 2), list[torch.fx.GraphModule]()

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    settings = {"action_guidance_scale": guidance, "context": context}
    plain = session(generator, x["text"], causality, LENGTH, **settings)
    expected = video(plain, x["modulation"])
    assert (expected - video(session(generator, x["text"], causality, LENGTH, **settings), None)).abs().max() > 1e-3
    for _ in range(2):
        capture = partial(CapturedPass, backend=backend)
        captured = session(generator, x["text"], causality, LENGTH, capture=capture, **settings)
        places = captured.cache.keys.data_ptr(), captured.cache.values.data_ptr()
        assert torch.equal(video(captured, x["modulation"]), expected)
        assert (captured.cache.keys.data_ptr(), captured.cache.values.data_ptr()) == places
    # A second video finds the code of the first.
    assert len(graphs) == 1


@torch.no_grad()
def test_one_graph_serves_layers_in_float8() -> None:
    generator, x = small_generator(dim=48, ffn_dim=80), small_inputs(LENGTH)
    graphs = list[torch.fx.GraphModule]()

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    quantize_layers(generator.blocks, "fp8_dynamic")
    plain, captured = (
        video(session(generator, x["text"], BlockCausality(2, 6, 2), LENGTH, capture=capture), None)
        for capture in (None, partial(CapturedPass, backend=backend))
    )
    torch.testing.assert_close(captured, plain, atol=1e-6, rtol=0)
    (graph,) = graphs
    assert sum(node.target is torch._scaled_mm for node in graph.graph.nodes) == 12, "six in each of two layers"


@torch.no_grad()
def test_a_block_without_actions_is_a_graph_of_its_own() -> None:
    generator, x = generator_and_inputs()

    def every_other(block: range, history: Tensor) -> Tensor | None:
        return None if block.start % 4 else x["modulation"][:, block.start : block.stop]

    runs = [
        session(generator, x["text"], BlockCausality(2, 6, 2), LENGTH, capture=capture)
        for capture in (None, partial(CapturedPass, backend="eager"))
    ]
    plain, captured = (video(run, every_other) for run in runs)
    assert torch.equal(plain, captured)


@pytest.mark.parametrize(
    "causality", [BlockCausality(3, 3, independent_first_frame=True), BlockCausality(2, 6, 2), BlockCausality(1, 4)]
)
@torch.no_grad()
def test_noise_levels_keep_their_digits_after_a_long_start(causality: BlockCausality) -> None:
    """In bfloat16, whose 8 bits no timestep survives; with so many known frames that a write comes first."""
    generator, x = generator_and_inputs()
    length = 25 if causality.independent_first_frame else LENGTH
    initial = x["clean"][:, : causality.split(length)[5].stop].bfloat16()
    videos = []
    for capture in (None, partial(CapturedPass, backend="eager")):
        run = session(generator.bfloat16(), x["text"].bfloat16(), causality, length, capture=capture)
        run.noise = frame_noise(7, (4, 9), SHAPE, dtype=torch.bfloat16)
        videos.append(torch.cat(list(rollout(run, length, x["modulation"][:, :length].bfloat16(), initial)), dim=1))
    assert torch.equal(*videos)


@torch.no_grad()
def test_videos_of_many_sizes_are_all_captured() -> None:
    """Of more sizes than torch compiles code for unless it is told: here two, for the sake of speed."""
    generator, x = small_generator(num_layers=1), small_inputs(LENGTH)
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=2):
        for batch_size in (1, 2, 3):
            run = session(
                generator,
                x["text"][:1].expand(batch_size, -1, -1),
                BlockCausality(1, 2),
                3,
                samples=tuple(range(batch_size)),
                capture=partial(CapturedPass, backend="eager"),
            )
            assert len(torch.cat(list(rollout(run, 3)), dim=1)) == batch_size


@torch.no_grad()
@pytest.mark.usefixtures("scalar_code")
@pytest.mark.parametrize(("mixes", "tolerance"), [(False, 1e-6), (True, 0.1)], ids=["float32", "bf16_mixed"])
def test_compiled_code_copies_no_cache(mixes: bool, tolerance: float) -> None:
    """Under autocast, attention would cast keys and values of another dtype than its own, the whole window of them."""
    generator, x = generator_and_inputs()
    causality = BlockCausality(2, 6, 2)
    torch.compiler.reset()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixes):
        run = session(generator, x["text"], causality, LENGTH, capture=CapturedPass)
        expected = video(session(generator, x["text"], causality, LENGTH), x["modulation"])
        found, codes = run_and_get_code(lambda: video(run, x["modulation"]))
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    keys, _ = run.cache.of_layer(0)
    assert keys.dtype == (torch.bfloat16 if mixes else torch.float32) and len(codes) == 1
    shape = ", ".join(map(str, keys.shape))
    assert re.search(rf"assert_size_stride\(\w+, \({shape}\)", codes[0]), "the cache is an input"
    buffers = [list(map(int, sizes.split(", "))) for sizes in re.findall(r"empty_strided\w*\(\(([\d, ]+\d)", codes[0])]
    assert buffers and not any(math.prod(sizes) == keys.numel() for sizes in buffers), "and no buffer"


@torch.no_grad()
def test_a_window_that_fills_is_refused() -> None:
    generator, x = generator_and_inputs()
    run = session(generator, x["text"], BlockCausality(2, 6, 2), LENGTH)
    early = CapturedPass(generator, generator.text_cache(x["text"]), run.cache)
    with pytest.raises(ValueError, match="captured behind a full window"):
        early.denoise(x["noisy"][:, :2], x["timestep"][:, :2])
