"""What a module adds to checkpoints, and what it takes; test_action_video_module.py has it from fits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_action import ActionVideoModule, LinearVideoCodec
from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.checkpoints.lora import LoRASettings
from tests.support.small_generator import small_generator
from tests.support.small_module import small_module


def build(**changes: Any) -> ActionVideoModule:
    return small_module("cpu", vae=lambda: LinearVideoCodec(latent_dim=5, patch_size=4), **changes)


def fitted(**changes: Any) -> ActionVideoModule:
    module = build(**changes)
    module.frozen.vae.fit(torch.rand(3, 9, 3, 16, 24) * 2 - 1)  # type: ignore[attr-defined]
    return module


def saved(module: ActionVideoModule) -> dict[str, Any]:
    """A checkpoint, as Lightning makes it."""
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def test_a_checkpoint_says_what_weights_do_not() -> None:
    module = fitted()
    module.action_statistics = [{"name": "stick"}]
    checkpoint = saved(module)
    assert checkpoint["action_schema"] == module.schema.to_dict() and checkpoint["num_heads"] == "3"
    assert checkpoint["fit_seconds"] == 0 and checkpoint["num_unstepped"] == 0 and "lora_alpha" not in checkpoint
    assert checkpoint["action_statistics"] == [{"name": "stick"}]
    other = build()
    other.on_load_checkpoint(checkpoint)
    assert other.frozen.vae.fitted and other.action_statistics == [{"name": "stick"}]  # type: ignore[attr-defined]
    tensors, loaded = (each.frozen.vae.fitted_tensors() for each in (module, other))  # type: ignore[attr-defined]
    assert tensors.keys() == loaded.keys() and all(torch.equal(tensors[name], loaded[name]) for name in tensors)


def test_statistics_of_the_own_data_stay() -> None:
    module = fitted()
    module.action_statistics = [{"name": "own"}]
    module.on_load_checkpoint({**saved(module), "action_statistics": [{"name": "earlier"}]})
    assert module.action_statistics == [{"name": "own"}]


def test_the_scale_of_lora_is_saved() -> None:
    checkpoint = saved(fitted(lora=LoRASettings(rank=2, alpha=6.0, target_modules=["q"])))
    assert checkpoint["lora_alpha"].item() == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["state_dict"].popitem(), "the checkpoint"),
        (
            lambda c: c["state_dict"]["generator.blocks.0.ffn.0.bias"].fill_(torch.nan),
            "the checkpoint.*take an earlier",
        ),
        (lambda c: c.pop("action_schema"), "the checkpoint holds no action schema: it was not written by"),
        (
            lambda c: c.update(num_heads="4"),
            "the checkpoint was trained with num_heads 4, the generator has num_heads 3",
        ),
        (lambda c: c.pop("vae"), "the checkpoint holds no fitted VAE: use the configuration it was trained with"),
    ],
)
def test_checkpoints_of_other_models_are_refused(change: Callable[[dict[str, Any]], object], message: str) -> None:
    module = fitted()
    checkpoint = saved(fitted())
    change(checkpoint)
    with pytest.raises(ValueError, match=message):
        module.on_load_checkpoint(checkpoint)


def test_other_actions_are_refused_where_there_are_any() -> None:
    schema = ActionSchema([ActionPart("wheel", size=3)])
    checkpoint = saved(fitted())
    with pytest.raises(ValueError, match="was trained with the actions .*'stick'.*, the configuration says .*'wheel'"):
        fitted(schema=schema).on_load_checkpoint(checkpoint)
    backbone = fitted(schema=schema, action_projection=None)
    assert not backbone.takes_actions and fitted().takes_actions
    backbone.on_load_checkpoint({**saved(backbone), "action_schema": checkpoint["action_schema"]})


def test_weights_in_8_bits_take_none() -> None:
    module = fitted()
    checkpoint = saved(module)
    module._quantized = True
    with pytest.raises(ValueError, match="neither train nor take those of a checkpoint; build a new module"):
        module.on_load_checkpoint(checkpoint)


def test_seconds_add_up_over_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 103.0, 107.0])
    module = fitted(generator=small_generator)
    module.on_load_checkpoint({**saved(module), "fit_seconds": 20.0})
    assert module.fit_seconds == 20
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    module.on_fit_start()
    assert module.fit_seconds == 23
    module.on_fit_end()
    assert module.fit_seconds == 27 and saved(module)["fit_seconds"] == 27
