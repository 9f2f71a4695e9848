"""Parts of a pipeline, from a run or from released weights, as arguments of its constructor."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_action.checkpoints.adapter import load_adapter, read_adapter
from lightning_action.checkpoints.pretrained import generator_file, load_generator
from lightning_action.checkpoints.run_format import AVERAGES
from lightning_action.frozen.umt5 import UMT5TextEncoder
from lightning_action.frozen.wan_vae import WanVideoVAE
from lightning_action.generator.model import CausalWanModel
from lightning_action.weights.generator_file import read_generator
from lightning_action.weights.names import few
from lightning_action.weights.size import generator_arguments, traits_in
from lightning_action.weights.values import DTYPES

# Where the checkpoint of a run has it, a LightningModule's attribute: as it is, or averaged by the EMA callback.
_GENERATOR_OF_RUN = ("state_dict.generator.", f"{AVERAGES}.generator.")


def parts_of_run(
    config: str | Path | Sequence[str | Path], ckpt_path: str | Path | None, allow: Sequence[str]
) -> dict[str, Any]:
    """Everything as it was trained. Raises as `load_run`."""
    if ckpt_path is None:
        raise ValueError(f"{config} is the configuration of a run: give the path of its checkpoint too")
    # Not at the top: a pipeline of released weights needs no lightning.
    from lightning_action.run import load_run

    module = load_run(config, ckpt_path, allow)
    return {
        "generator": module.generator,
        "text_encoder": module.frozen.text_encoder,
        "vae": module.frozen.vae,
        "action_module": module.action_module,
        "action_dim": module.schema.action_dim,
        "enable_adaln_zero": module.action_projection is not None,
        "action_projection": module.action_projection,
        "causality": module.causality,
        "sampling": module.sampling,
        "timestep_shift": module.schedule.shift,
        "schema": module.schema,
    }


def parts_of_release(
    path: str | Path | None, generator: CausalWanModel | None, dtype: torch.dtype | None
) -> dict[str, Any]:
    """Build a generator with its weights, and the parts of a Wan release that it was trained with, which load later.

    Arguments and errors as in `ActionCausalInferencePipeline.from_checkpoint`.
    """
    if generator is not None and dtype is not None:
        raise ValueError("a generator that is given keeps its dtype: leave dtype out, or give generator.to(dtype)")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"a generator computes in one of {', '.join(map(str, DTYPES))}, got dtype {dtype!r}")
    if generator is None:
        generator = _empty_generator(generator_file(path), dtype)
    load_generator(generator, path)
    return {
        "generator": generator,
        "text_encoder": UMT5TextEncoder(text_len=generator.text_len),
        # Wan 2.1 has 16 latent channels at an eighth of the pixels, Wan 2.2's own VAE 48 at a sixteenth.
        "vae": WanVideoVAE(None, generator.out_dim, 16 if generator.out_dim == 48 else 8),
    }


def parts_of_adapter(path: str | Path, generator: CausalWanModel, any_base: bool) -> dict[str, Any]:
    """The action projection and schema of an adapter; its LoRA goes into the generator. Raises as `load_adapter`."""
    adapter = read_adapter(path)
    projection = adapter.build_projection(generator.dim)
    load_adapter(path, generator, projection, adapter.schema, any_base)
    return {
        "action_dim": adapter.schema.action_dim,
        "action_projection": projection.to(generator.patch_embedding.weight),
        "schema": adapter.schema,
    }


def warn_of_unused_actions(path: str | Path | None) -> None:
    """Say so where a checkpoint holds an action projection, which a pipeline of its generator alone leaves aside."""
    checkpoint = read_generator(generator_file(path))
    unused = [name for name in (*checkpoint.ignored, *checkpoint.dropped) if "action_projection" in name]
    if unused:
        warnings.warn(
            f"only the generator was taken from {path}, not its action projection ({few(unused)}): load that with "
            "lightning_action.load_action_projection, and give it as action_projection",
            stacklevel=3,
        )


def _empty_generator(path: Path, dtype: torch.dtype | None) -> CausalWanModel:
    """Build one of the size of the weights, on the meta device, so that it takes no memory before they are loaded."""
    checkpoint = read_generator(path)
    if checkpoint.part in _GENERATOR_OF_RUN:
        raise ValueError(
            f"{path} is the checkpoint of a run, whose configuration says what tensors do not: give its "
            "config_fit.yaml as config too, or the generator that takes the weights"
        )
    entries = checkpoint.tensors.entries
    said = traits_in(checkpoint.said)
    num_heads = int(said["num_heads"]) if "num_heads" in said else None
    with torch.device("meta"):
        generator = CausalWanModel(
            **generator_arguments(entries, num_heads), preconditioned=said.get("preconditioned") == "True"
        )
    return generator.to(dtype or entries["patch_embedding.weight"].dtype)
