"""One process is a mesh of one; several are in tests/integration/test_sharding.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lightning_action.distributed.lockstep import Lockstep
from lightning_action.distributed.sharding import Sharding, is_sharded, keep_gathered, shard, shard_generator
from lightning_action.generator.causality import BlockCausality
from tests.support.attentions import Attentions
from tests.support.small_generator import small_generator, small_inputs


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_sharded_generator_computes_and_learns_the_same(mesh: DeviceMesh, checkpointing: bool) -> None:
    plain, sharded = small_generator(), small_generator(activation_checkpointing=checkpointing)
    shard_generator(sharded, mesh, Sharding(param_dtype="float32"))
    x = small_inputs(4)
    arguments = (x["clean"], x["noisy"], x["timestep"], x["text"], BlockCausality(2), x["modulation"])
    outputs = [generator.teacher_forcing(*arguments) for generator in (plain, sharded)]
    assert torch.equal(*outputs) and is_sharded(sharded) and not is_sharded(plain)
    for output in outputs:
        output.square().mean().backward()
    for (name, theirs), ours in zip(plain.named_parameters(), sharded.parameters(), strict=True):
        assert isinstance(ours, DTensor) and isinstance(ours.grad, DTensor), name
        assert theirs.grad is not None and torch.equal(theirs.grad, ours.grad.full_tensor()), name


def test_compiled_sharded_and_checkpointed_it_learns_the_same(mesh: DeviceMesh) -> None:
    plain = small_generator()
    generator = small_generator(activation_checkpointing="keep_attention", flex_on_cuda=False)
    shard_generator(generator, mesh, Sharding(param_dtype="float32"))
    torch.compiler.reset()
    codes: list[object] = []
    generator.compile_layers(backend=lambda graph, inputs: codes.append(graph) or graph.forward)
    x = small_inputs(4)
    counts = []
    for model in (plain, generator):
        arguments = (x["clean"], x["noisy"], x["timestep"], x["text"], BlockCausality(2), x["modulation"])
        with Attentions() as attentions:
            model.teacher_forcing(*arguments).square().mean().backward()
        counts.append(attentions.count)
    assert codes and counts[0] == counts[1] > 0, "attention is kept"
    for (name, theirs), ours in zip(plain.named_parameters(), generator.parameters(), strict=True):
        gradient = ours.grad.full_tensor()  # type: ignore[union-attr]
        torch.testing.assert_close(gradient, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_master_weights_stay_float32_while_it_computes_in_bfloat16(mesh: DeviceMesh) -> None:
    generator, x = small_generator(), small_inputs(4)
    shard_generator(generator, mesh, Sharding())
    latents, text = x["noisy"].bfloat16(), x["text"].bfloat16()
    velocity = generator.block_causal(latents, x["timestep"], text, BlockCausality(2))
    velocity.square().mean().backward()
    assert velocity.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in generator.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in generator.parameters()} == {torch.float32}  # type: ignore[union-attr]


def test_a_generator_may_be_on_the_meta_device(mesh: DeviceMesh) -> None:
    with torch.device("meta"):
        generator = small_generator()
    shard_generator(generator, mesh, Sharding())
    assert all(isinstance(p, DTensor) and p.is_meta for p in generator.parameters())


def test_small_parts_can_stay_gathered(mesh: DeviceMesh) -> None:
    part = nn.Linear(3, 2)
    shard(part, (), mesh, Sharding(param_dtype="float32"))
    part(torch.ones(1, 3))
    assert isinstance(part.weight, DTensor)
    keep_gathered(part)
    with torch.no_grad():
        part(torch.ones(1, 3))
    assert not isinstance(part.weight, DTensor)
    keep_gathered(nn.Linear(3, 2))  # not sharded: nothing to do


@torch.no_grad()
def test_lockstep_of_a_single_rank_ends(mesh: DeviceMesh) -> None:
    generator = small_generator()
    shard_generator(generator, mesh, Sharding(param_dtype="float32"))
    assert isinstance(generator, FSDPModule)
    lockstep = Lockstep(generator, torch.float32)
    assert lockstep.begin(4)
    lockstep.end()
    lockstep.wait_for_others()
