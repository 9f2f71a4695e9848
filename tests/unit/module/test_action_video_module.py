from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_action import (
    ActionModulationProjection,
    ActionVideoModule,
    BlockCausality,
    LatentDataModule,
    LinearVideoCodec,
    SpriteDataModule,
)
from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.batch import to_unit_range
from lightning_action.callbacks import FreezeBackboneFirst
from lightning_action.checkpoints.lora import LoRASettings, has_lora
from lightning_action.cli.encode import clips_of, encode, encoding_of, frame_size_of, prepare_frozen
from lightning_action.data.latent_writer import StoreWriter
from lightning_action.diffusion.noise import frame_noise
from lightning_action.distributed.fsdp2 import FSDP2Strategy, require_supported
from lightning_action.evaluation.metrics.inverse_dynamics_model import (
    InverseDynamicsModel,
    columns_of,
    save_inverse_dynamics,
)
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.generation.prompt_switches import PromptSwitch
from lightning_action.generation.rollout import CausalRollout, rollout
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.acceleration import Acceleration
from lightning_action.generator.quantization import Fp8SelfAttention
from lightning_action.optimization import Optimization
from tests.support.small_generator import small_generator
from tests.support.small_module import small_module
from tests.support.sprite_module import LATENTS, build, build_generator, build_projection, data, ready, trainer


def build_forgetful_projection(action_dim: int, dim: int) -> ActionModulationProjection:
    projection = build_projection(action_dim, dim)
    projection.action_embedding.append(nn.Dropout(0.3))
    return projection


def test_the_first_generation_of_fsdp_is_refused_with_what_to_use() -> None:
    for named in ("fsdp", "fsdp_cpu_offload", "lightning.pytorch.strategies.FSDPStrategy", FSDPStrategy()):
        with pytest.raises(ValueError, match="--config configs/fsdp.yaml"):
            require_supported(named)
    for named in ("ddp", "auto", "lightning_action.FSDP2Strategy", FSDP2Strategy()):
        require_supported(named)


def test_what_sharded_weights_do_not_allow_is_refused_before_the_run(tmp_path: Path) -> None:
    module = build(lora=LoRASettings(rank=2, target_modules=["q"]), export_weights=True)
    with pytest.raises(ValueError, match="export_weights cannot merge sharded LoRA"):
        trainer(tmp_path, strategy=FSDP2Strategy()).fit(module, data())
    module = build(acceleration=Acceleration(quantization="int8_weight_only"))
    with pytest.raises(ValueError, match="quantization needs whole weights: predict with `--trainer.strategy ddp`"):
        trainer(tmp_path, strategy=FSDP2Strategy()).predict(module, data())
    module = build(acceleration=Acceleration(capture_pass=True))
    with pytest.raises(ValueError, match="capture_pass needs whole weights"):
        trainer(tmp_path, strategy=FSDP2Strategy()).predict(module, data())


def in_bytes(video: Tensor) -> Tensor:
    """The video as `predict` hands it over, each value a whole number of 255ths."""
    return (video * 255).round() / 255


def test_something_must_train() -> None:
    with pytest.raises(ValueError, match="nothing would train"):
        build(action_projection=None, optimization=Optimization(train_backbone=False))


def test_a_new_projection_changes_nothing_and_learns_at_once() -> None:
    module, batch = ready()
    assert module.action_projection is not None
    nn.init.zeros_(module.action_projection.action_projection.weight)
    nn.init.zeros_(module.action_projection.action_projection.bias)
    losses = module.matched_losses(batch)
    assert all(torch.equal(loss.per_frame, losses["true"].per_frame) for loss in losses.values())
    video = module.generate(batch)
    assert torch.equal(video, module.generate({**batch, "action": None}))
    module.training_step(batch, 0)["loss"].backward()
    grads = {name: p.grad for name, p in module.action_projection.named_parameters()}
    last = {"action_projection.weight", "action_projection.bias"}
    assert all(grads[name].abs().max() > 0 for name in last)  # type: ignore[union-attr]
    assert all(grad is None or not grad.any() for name, grad in grads.items() if name not in last)


def test_actions_act() -> None:
    """The positive control of the test above."""
    module, batch = ready()
    losses = module.matched_losses(batch)
    assert (losses["true"].per_sample - losses["null"].per_sample).abs().min() > 1e-4
    video = module.generate(batch)
    assert video.shape == batch["video"].shape and video.min() >= 0 and video.max() <= 1
    assert (video - module.generate({**batch, "action": -batch["action"]})).abs().max() > 1e-2
    assert torch.equal(video, module.generate(batch)), "the noise belongs to the sample"


@pytest.mark.parametrize("row", [0, 6, 15])
def test_an_action_changes_no_earlier_pixel(row: int) -> None:
    module, batch = ready()
    other = batch["action"].clone()
    other[:, row:] *= -1
    before, after = module.generate(batch), module.generate({**batch, "action": other})
    first_changed = 1 + 4 * (row // 4)
    assert torch.equal(before[:, :first_changed], after[:, :first_changed])
    assert not torch.equal(before[:, first_changed:], after[:, first_changed:])


def test_validation_compares_losses_of_samples_that_act(tmp_path: Path) -> None:
    module, batch = ready()
    assert len(batch["sample_id"]) == 2
    alone, nobody = (
        trainer(tmp_path, limit_val_batches=1).validate(
            module, DataLoader([{**batch, "has_action": torch.tensor(acts)}], batch_size=None)
        )[0]
        for acts in ([True, False], [False, False])
    )
    losses = module.losses.matched(module._encoded(batch), ("true", "swapped"))
    true, swapped = (losses[name].per_frame[0].mean().item() for name in ("true", "swapped"))
    assert alone["validation/swapped_relative_gap"] == pytest.approx((swapped - true) / true, rel=1e-4)
    assert alone["validation/swapped_win_rate"] == float(true < swapped)
    assert math.isnan(nobody["validation/swapped_win_rate"]) and not math.isnan(nobody["validation/loss"])


def test_a_batch_is_its_samples() -> None:
    module, batch = ready()
    alone = {key: value[1:] for key, value in batch.items()}
    torch.testing.assert_close(module.generate(alone), module.generate(batch)[1:], atol=1e-5, rtol=0)


def test_streamed_blocks_are_the_video() -> None:
    module, batch = ready()
    decode = module.frozen.vae.streaming_decoder()
    frames = torch.cat([decode(block) for block in module.stream_latents(batch)], dim=1)
    assert torch.equal((frames * 0.5 + 0.5).clamp(0, 1), module.generate(batch))


def test_generation_without_a_start_and_of_another_length() -> None:
    module, batch = ready()
    text_only = {"prompt": batch["prompt"], "sample_id": batch["sample_id"], "frame_size": torch.tensor([[16, 24]] * 2)}
    with pytest.raises(ValueError, match=r"the batch has no `action` .*None for no action.*; it has frame_size"):
        module.generate({**text_only, "num_latents": 3})
    text_only["action"] = None
    assert module.generate({**text_only, "num_latents": 3}).shape == (2, 9, 3, 16, 24)
    longer = {**batch, "action": batch["action"].repeat(1, 2, 1)}
    assert module.generate(longer).shape[1] == 33


def test_an_action_module_infers_what_is_not_given() -> None:
    class FromHistory(nn.Module):
        def forward(self, latents: Tensor) -> Tensor:
            return latents[:, -1].mean((2, 3)).tanh().repeat(1, 2)[:, :8]

    module, batch = ready(action_module=FromHistory)
    without = {key: value for key, value in batch.items() if key != "action"}
    plain, _ = ready()
    inferred, null = module.generate(without), plain.generate({**batch, "action": None})
    assert torch.equal(null, module.generate({**batch, "action": None})), "None is no action, also with a module"
    assert torch.equal(inferred[:, :1], null[:, :1]) and (inferred - null).abs().max() > 1e-3
    assert not torch.equal(true_loss(module, without), true_loss(plain, without))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: {**b, "action": b["action"][..., :1]}, r"must be \[B, 16, 2\].*got \[2, 16, 1\]"),
        (lambda b: {**b, "action": b["action"][:, :14]}, "14 action rows fit no whole number.*transition.*per_latent"),
        (lambda b: {**b, "action": b["action"] * torch.nan}, "not finite"),
        (lambda b: {**b, "video": b["video"] * torch.nan}, "`video` go from nan to nan"),
        (lambda b: {**b, "video": b["video"][:, :0]}, "needs 1 frames, got 0"),
    ],
)
def test_bad_batches_are_refused(change: Callable[[dict[str, Any]], dict[str, Any]], message: str) -> None:
    module, batch = ready()
    with pytest.raises(ValueError, match=message):
        module.generate(change(batch))


def test_training_step_tells_where_the_loss_comes_from() -> None:
    module, batch = ready(loss_weighting="bell")
    outputs = module.training_step(batch, 0)
    assert outputs["loss_per_frame"].shape == outputs["timestep"].shape == (2, LATENTS)
    assert not outputs["loss_per_frame"].requires_grad and outputs["loss"].requires_grad
    weight = module.schedule.weights[module.schedule.nearest(outputs["timestep"])]
    torch.testing.assert_close(outputs["loss"].detach(), (weight * outputs["loss_per_frame"]).mean())


def test_a_prediction_is_the_video_with_its_origin(tmp_path: Path) -> None:
    module, batch = ready(sampling=Sampling(num_inference_steps=2))
    (prediction,) = trainer(tmp_path).predict(module, DataLoader([batch], batch_size=None))
    assert torch.equal(prediction["video"], in_bytes(module.generate(batch)))
    assert torch.equal(prediction["latents"], torch.cat(list(module.stream_latents(batch)), dim=1))
    assert torch.equal(prediction["truth"], batch["video"] * 0.5 + 0.5)
    assert len(prediction["block_seconds"]) == LATENTS and prediction["decode_seconds"] > 0


@pytest.mark.parametrize("by_sample", [False, True])
def test_prompts_are_switched_in_a_prediction(tmp_path: Path, by_sample: bool) -> None:
    switches: list[Any] = [[2, "a blue square"], [4, "a red disc"]]
    sampling = Sampling(2, prompt_switches=() if by_sample else tuple(PromptSwitch(*switch) for switch in switches))
    module, batch = ready(sampling=sampling, export_weights=False)
    without = torch.cat(list(module.stream_latents({**batch, "prompt_switches": [[], []]})), dim=1)
    if by_sample:
        batch["prompt_switches"] = [switches] * 2
    (prediction,) = trainer(tmp_path).predict(module, DataLoader([batch], batch_size=None))
    assert prediction.get("prompt_switches") == ([switches] * 2 if by_sample else None)
    found = prediction["latents"]
    assert torch.equal(found[:, :2], without[:, :2])
    assert (found - without)[:, 2:].abs().amax((0, 2, 3, 4)).min() > 1e-3
    # From the start of the second switch on, only the sink and the past's latents tell what was before.
    text = module.frozen.encode_text(batch["prompt"])
    noise = frame_noise(0, batch["sample_id"].tolist(), found.shape[2:])
    modulation = module.conditioning.of_rollout(batch["action"], False, LATENTS, text, module.causality)
    sampler = module.sampling.sampler(module.schedule)
    session = CausalRollout(module.generator, text, module.causality, sampler, noise, found.shape[2:], LATENTS)
    with torch.no_grad():
        list(rollout(session, 4, modulation[:, :4], found[:, :4]))
        session.switch_prompt(module.frozen.encode_text(["a red disc"] * 2))
        assert torch.equal(torch.cat(list(rollout(session, 1, modulation[:, 4:])), dim=1), found[:, 4:])


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ([[(0, "a")]] * 2, "latent_frame"),
        ([[(7, "a")]] * 2, "latent frame 7: .* the nearest: 4"),
        ([[(2, "a")], [(3, "a")]], r"the same latent frames, got \[2\] and \[3\]: put them into batches of their own"),
        ([[(2, "a")]], "must be 2 lists, one for each sample_id"),
        ([[(2, "a", 1)], []], r"of pairs \(latent frame, prompt\)"),
    ],
)
def test_switches_that_do_not_fit_a_batch_are_refused(tmp_path: Path, switches: Any, message: str) -> None:
    module, batch = ready()
    loader = DataLoader([{**batch, "prompt_switches": switches}], batch_size=None)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).predict(module, loader)


def test_actions_that_change_on_the_way_change_what_follows_alone(tmp_path: Path) -> None:
    module, batch = ready()
    changed = {**batch, "action": batch["action"].clone()}
    changed["action"][:, 8:] *= -1
    before, after = trainer(tmp_path).predict(module, DataLoader([batch, changed], batch_size=None))
    assert torch.equal(after["latents"][:, :3], before["latents"][:, :3])
    assert torch.equal(after["video"][:, :9], before["video"][:, :9])
    assert (after["latents"] - before["latents"])[:, 3:].abs().amax((0, 2, 3, 4)).min() > 1e-3


def test_layers_are_quantized_for_prediction_alone(tmp_path: Path) -> None:
    module, batch = ready(acceleration=Acceleration(quantization="int8_weight_only"))
    plain = module.generate(batch)
    (prediction,) = trainer(tmp_path).predict(module, DataLoader([batch], batch_size=None))
    assert 0 < (prediction["video"] - in_bytes(plain)).abs().max() < 0.1
    assert type(module.generator.blocks[0].ffn[0].weight) is not nn.Parameter


@pytest.mark.parametrize("lora", [None, LoRASettings(rank=2)], ids=["without_lora", "with_lora"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_layers_are_quantized_for_prediction_in_float8(
    tmp_path: Path, precision: Any, lora: LoRASettings | None
) -> None:
    """And stay as they are when another prediction follows, before which Lightning sets the module's type anew."""
    module, batch = ready(
        generator=lambda: build_generator(32), acceleration=Acceleration(quantization="fp8_dynamic"), lora=lora
    )
    plain = module.generate(batch)
    first, second = (
        trainer(tmp_path, precision=precision).predict(module, DataLoader([batch], batch_size=None))[0]["video"]
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert 1e-4 < (first - plain).abs().max() < 0.1
    (attention,) = {type(layer.self_attn) for layer in module.generator.blocks}
    assert attention is Fp8SelfAttention and not has_lora(module.generator)


def test_weights_in_8_bits_neither_train_nor_take_others(tmp_path: Path) -> None:
    module, batch = ready(generator=lambda: build_generator(32), acceleration=Acceleration(quantization="fp8_dynamic"))
    checkpoint = {"state_dict": module.state_dict(), "pytorch-lightning_version": L.__version__}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "other.ckpt")
    loader = DataLoader([batch], batch_size=None)
    trainer(tmp_path).predict(module, loader)
    with pytest.raises(ValueError, match="in 8 bits since its last prediction"):
        trainer(tmp_path).predict(module, loader, ckpt_path=tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="build a new module"):
        trainer(tmp_path, max_steps=1).fit(module, data())


class Copied(L.Callback):
    """Copies the module in the middle of a fit, as an average of one's own would."""

    copies: list[ActionVideoModule]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        attached, pl_module.trainer = pl_module.trainer, None
        self.copies = [copy.deepcopy(pl_module)]  # type: ignore[list-item]
        pl_module.trainer = attached


def test_a_module_can_be_copied_in_a_fit(tmp_path: Path) -> None:
    module, copied = build(), Copied()
    trainer(tmp_path, max_steps=1, callbacks=[copied]).fit(module, data())
    assert copied.copies[0].state_dict().keys() == module.state_dict().keys()


def test_guidance_by_prompts_goes_away_from_the_negative_one() -> None:
    def generated(**settings: Any) -> Tensor:
        module, batch = ready(sampling=Sampling(num_inference_steps=2, **settings))
        return module.generate(batch)

    plain = generated()
    assert torch.equal(generated(prompt_guidance_scale=1.0, negative_prompt="dark"), plain)
    pushed = generated(prompt_guidance_scale=4.0)
    assert not torch.equal(pushed, plain)
    assert not torch.equal(generated(prompt_guidance_scale=4.0, negative_prompt="dark"), pushed)
    never = generated(prompt_guidance_scale=4.0, guidance_interval=(0.0, 0.0))
    torch.testing.assert_close(never, plain, atol=1e-5, rtol=0)
    both = generated(prompt_guidance_scale=4.0, action_guidance_scale=2.0)
    assert not torch.equal(both, pushed) and not torch.equal(both, generated(action_guidance_scale=2.0))


def test_latents_that_are_not_whole_blocks_are_refused() -> None:
    module, batch = ready(causality=BlockCausality(3))
    with pytest.raises(ValueError, match="5 latent frames .* not a whole number of blocks"):
        module.generate(batch)


@pytest.mark.parametrize(("precision", "is_fused"), [("32-true", True), ("bf16-mixed", False)])
def test_steps_are_fused_where_lightning_clips_gradients_then(tmp_path: Path, precision: Any, is_fused: bool) -> None:
    run = trainer(tmp_path, max_steps=1, precision=precision, gradient_clip_val=1.0)
    run.fit(build(), data())
    assert run.global_step == 1 and run.optimizers[0].param_groups[0]["fused"] is is_fused


def test_a_loss_that_is_not_finite_stops_training() -> None:
    module, batch = ready()
    with torch.no_grad():
        module.generator.head.head.bias.fill_(torch.inf)
    with pytest.raises(RuntimeError, match="training loss is inf at step 0: lower the learning rates"):
        module.training_step(batch, 0)


def test_optimizer_groups(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=1)
    module = build()
    run.fit(module, data())
    names = [group["name"] for group in run.optimizers[0].param_groups]
    assert names == ["action", "backbone"]
    sizes = [sum(p.numel() for p in group["params"]) for group in run.optimizers[0].param_groups]
    assert sizes[1] == sum(p.numel() for p in module.generator.parameters())
    backbone_only = trainer(tmp_path, max_steps=1)
    backbone_only.fit(build(action_projection=None), data())
    assert [group["name"] for group in backbone_only.optimizers[0].param_groups] == ["backbone"]


def weights(module: ActionVideoModule) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_stopping_and_resuming_changes_nothing(tmp_path: Path) -> None:
    """On either side of the switch at step 6; an epoch is 5 steps, so 3 and 8 lie in the middle of one.

    The projection draws from the global generator, which a checkpoint does not hold.
    """

    def fit(folder: str, unfreeze: int = 6, stop_at: int = 12, **kwargs: Any) -> ActionVideoModule:
        freeze = FreezeBackboneFirst(["generator"], unfreeze_at_step=unfreeze, warmup_steps=3)
        save = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        run = trainer(tmp_path, max_steps=12, callbacks=[freeze, save, StopAt(stop_at)], enable_checkpointing=True)
        module = build(action_projection=build_forgetful_projection)
        run.fit(module, data(), **kwargs)
        return module

    uninterrupted = weights(fit("whole"))
    path = None
    for stop in (3, 5, 8, 10):
        stopped = fit(f"to_{stop}", stop_at=stop, ckpt_path=path)
        assert stopped.trainer.global_step == stop
        path = tmp_path / f"to_{stop}" / f"step={stop}.ckpt"
    resumed = weights(fit("to_the_end", ckpt_path=path))
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)
    other = weights(fit("other", unfreeze=7))
    assert not torch.equal(uninterrupted["generator.head.head.weight"], other["generator.head.head.weight"])


class StopAt(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.step


def test_export_and_pretrained_are_a_round_trip(tmp_path: Path) -> None:
    first = build(action_projection=None, export_weights=True)
    trainer(tmp_path / "out", max_steps=2).fit(first, data())
    second = build(pretrained=str(tmp_path / "out"), optimization=Optimization(0.0, 0.0))
    trainer(tmp_path, max_steps=1).fit(second, data(seed=9))
    for name, tensor in first.generator.state_dict().items():
        assert torch.equal(tensor, second.generator.state_dict()[name])
    pair = (first.frozen.vae, second.frozen.vae)
    assert all(torch.equal(*(part.fitted_tensors()[key] for part in pair)) for key in ("first.basis", "later.mean"))  # type: ignore[attr-defined]
    assert second.fit_seconds > first.fit_seconds > 0
    with pytest.raises(FileNotFoundError, match="no vae.safetensors in .*export_weights"):
        trainer(tmp_path, max_steps=1).fit(build(pretrained=str(tmp_path / "nothing")), data())


def test_a_checkpoint_brings_everything_and_refuses_another_model(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=2)
    module = build()
    run.fit(module, data())
    path = tmp_path / "last.ckpt"
    run.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    assert not any(name.startswith("frozen") for name in saved["state_dict"]), "frozen parts are not in the weights"
    assert saved["action_schema"]["alignment"] == "transition" and "later.basis" in saved["vae"]

    batch = data().dataset("predict").batch([0, 1, 2])
    fresh = build()
    predictions = trainer(tmp_path).predict(fresh, datamodule=data(), ckpt_path=path)
    assert predictions is not None
    prediction: Any = predictions[0]
    assert torch.equal(prediction["video"], in_bytes(module.eval().generate(batch)))
    assert torch.equal(prediction["truth"], (batch["video"] * 0.5 + 0.5).clamp(0, 1))
    assert prediction["sample_id"].tolist() == [0, 1, 2] and prediction["latents"].shape == (3, 5, 7, 4, 4)

    wider = ActionVideoModule(
        lambda: build_generator(28),
        lambda: HashingTextEncoder(6, 4),
        lambda: LinearVideoCodec(7, 4),
        build_projection,
        schema=data().action_schema,
    )
    with pytest.raises(ValueError, match=r"checkpoint does not fit.*of another shape: .*\(expected \["):
        trainer(tmp_path).predict(wider, datamodule=data(), ckpt_path=path)
    other_codec = build()
    other_codec.frozen.vae = LinearVideoCodec(6, 4)
    with pytest.raises(ValueError, match="VAE does not fit LinearVideoCodec"):
        trainer(tmp_path).predict(other_codec, datamodule=data(), ckpt_path=path)


def test_validation_says_at_which_noise_it_measured() -> None:
    module, batch = ready(loss_weighting="uniform")
    matched = module.losses.matched(module._encoded(batch))
    for loss in matched.values():
        assert loss.per_frame.shape == loss.timestep.shape and len(loss.per_frame[0]) % LATENTS == 0
        torch.testing.assert_close(loss.per_frame.mean(dim=1), loss.per_sample)
        assert torch.equal(loss.timestep, matched["true"].timestep)
    assert matched["true"].timestep.unique().numel() > 2 and matched["true"].timestep.min() >= 0
    asked = module.losses.matched(module._encoded(batch), ("true", "swapped"))
    assert asked.keys() == {"true", "swapped"}
    assert torch.equal(asked["swapped"].per_sample, matched["swapped"].per_sample)


def test_validation_measures_obedience(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=1, limit_val_batches=1, val_check_interval=1)
    run.fit(build(), data())
    names = set(run.callback_metrics)
    assert {"validation/loss", "validation/swapped_win_rate", "validation/rollout/sign_accuracy"} <= names


def true_loss(module: ActionVideoModule, batch: dict[str, Any]) -> Tensor:
    return module.matched_losses(batch)["true"].per_sample


@pytest.mark.usefixtures("few_draws")
def test_test_measures_all_that_can_be_known(tmp_path: Path) -> None:
    module, source = build(), data()
    module.frozen.vae.fit(source.codec_videos(15))  # type: ignore[attr-defined]
    trainer(tmp_path).test(module, source, verbose=False)
    report = json.loads((tmp_path / "report.json").read_text())
    expected = (
        "swapped_gap_moving",
        "shuffled_win_rate",
        "counterfactual_ratio",
        "cross_swap_accuracy",
        "held_drift_px",
    )
    assert all(isinstance(report[name], float) for name in (*expected, "gain_at_scale_1_5", "ssim", "seam_ratio"))
    assert report["sample_ids"] == list(range(6)) and len(report["per_episode"]["null_relative_gap"]) == 6
    assert module._obedience is not None and "held move_1 -0.15" in module._obedience.pictures()


@pytest.mark.usefixtures("few_draws")
def test_test_reads_actions_where_nobody_knows_the_state(tmp_path: Path) -> None:
    class Recorded(SpriteDataModule):
        read_positions = None  # type: ignore[assignment]
        simulate = None  # type: ignore[assignment]

    source = Recorded(data().world, num_latents=LATENTS, test_size=6, eval_batch_size=4)
    schema = source.action_schema
    reads = InverseDynamicsModel(schema, columns_of(schema, torch.rand(9, 2)), channels=(8, 8, 8))
    save_inverse_dynamics(tmp_path / "idm", reads, {})
    module = build(inverse_dynamics=str(tmp_path / "idm"))
    module.frozen.vae.fit(source.codec_videos(15))  # type: ignore[attr-defined]
    trainer(tmp_path).test(module, source, verbose=False)
    report = json.loads((tmp_path / "report.json").read_text())
    for figures in (report, *report["baselines"].values()):
        assert {"idm_accuracy", "idm_correlation_real_move_0", "flow_gain"} <= figures.keys()
    assert "gain_x" not in report and report["episodes"] == 6
    assert report["verdict"]["label"] == "cannot tell"

    module = build(inverse_dynamics=str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="no inverse-dynamics model at"):
        trainer(tmp_path).test(module, source, verbose=False)


def test_other_settings_of_sampling_for_one_video() -> None:
    module, batch = ready()
    assert torch.equal(module.generate(batch), module.generate(batch, module.sampling))
    none = module.generate(batch, replace(module.sampling, action_guidance_scale=0.0))
    assert torch.equal(none, module.generate({**batch, "action": None}))
    assert not torch.equal(none, module.generate(batch, replace(module.sampling, action_guidance_scale=2.0)))


def one_batch() -> dict[str, Any]:
    datamodule = data()
    datamodule.setup("fit")
    batch: dict[str, Any] = next(iter(datamodule.train_dataloader()))
    return batch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": ...}, "has no `video`"),
        ({"prompt": ...}, "has no prompt"),
        ({"sample_id": ...}, "has no sample_id"),
        ({"action": ...}, "has no `action` .* it has .*actions"),
        ({"video": lambda video: (video * 127 + 127).to(torch.uint8)}, "must be floats .* got torch.uint8"),
        ({"video": lambda video: video * 127 + 127}, r"pixels are in \[-1, 1\]"),
        ({"video": lambda video: video.movedim(2, -1)}, r"expected `video` \[3, T, 3, H, W\]"),
        ({"video": lambda video: video[:, :-1]}, "no whole number of latent frames"),
        ({"action": lambda action: action[..., :1]}, "actions for 5 latent frames must be"),
        ({"action": lambda action: action * torch.nan}, "not finite"),
        ({"sample_id": lambda samples: samples.float()}, "of whole numbers"),
    ],
)
def test_steps_refuse_what_check_refuses(changes: dict[str, Any], message: str) -> None:
    module, batch = build(), one_batch()
    module.configure_model()
    for key, change in changes.items():
        value = batch.pop(key)
        batch |= {"actions": value} if change is ... else {key: change(value)}
    for step in (module.training_step, module.validation_step):
        with pytest.raises(ValueError, match=message):
            step(batch, 0)


def test_video_in_double_precision_is_that_in_single() -> None:
    module, batch = build(), one_batch()
    module.configure_model()
    assert isinstance(module.frozen.vae, LinearVideoCodec)
    module.frozen.vae.fit(batch["video"])
    single = true_loss(module, batch)
    assert torch.equal(true_loss(module, {**batch, "video": batch["video"].double()}), single)


def projection(**changes: Any) -> Callable[[int, int], ActionModulationProjection]:
    return lambda action_dim, dim: ActionModulationProjection(action_dim, dim, 10, **{"num_layers": 2, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"timestep_shift": 3.0},
        {"generator": lambda: small_generator(num_heads=2)},
        {"action_projection": projection(action_modulation_scale=0.5)},
        {"action_projection": projection(slot_scales=(1.0, 1.0, 0.5, 1.0, 1.0, 1.0))},
        {"text_encoder": lambda: HashingTextEncoder(text_dim=9, text_len=6)},
        {"vae": lambda: LinearVideoCodec(latent_dim=5, patch_size=4)},
        {"causality": BlockCausality(2, 6)},
        {"sampling": Sampling(num_inference_steps=3)},
        {"acceleration": Acceleration(quantization="int8_weight_only")},
        {"schema": ActionSchema([ActionPart("stick", size=3, high=2.0)], "transition", "concat")},
    ],
)
def test_predictions_are_told_apart_by_all_that_they_depend_on(changes: dict[str, Any]) -> None:
    """As a record of them says, where the weights and shapes are the same."""
    settings = small_module().generation_settings()
    assert settings == small_module().generation_settings()
    assert settings != small_module(**changes).generation_settings()


# Four samples: guidance at four scales, three draws of noise, there and back, zero and four directions at three sizes.
PROBES = [True] * (4 + 3 + 1 + 13)


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize(("verb", "rollouts"), [("validate", [True, True]), ("test", [True, True, False, *PROBES])])
def test_measuring_makes_the_rollouts_that_it_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, rollouts: list[bool]
) -> None:
    """Validation reports the model alone, `test` also what it does without actions, and under those that probe it."""
    made: list[bool] = []
    stream_latents = ActionVideoModule.stream_latents

    def counted(module: ActionVideoModule, batch: dict[str, Any], sampling: Sampling | None) -> Iterator[Tensor]:
        made.append(batch["action"] is not None)
        return stream_latents(module, batch, sampling)

    monkeypatch.setattr(ActionVideoModule, "stream_latents", counted)
    module, _ = ready()
    getattr(trainer(tmp_path, limit_val_batches=1, limit_test_batches=1), verb)(module, data(), verbose=False)
    assert made == rollouts


def encoded(module: ActionVideoModule, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as a store of latents gives it."""
    given = {key: value for key, value in batch.items() if key != "video"}
    text = module.frozen.encode_text(batch["prompt"])
    size = torch.tensor([list(batch["video"].shape[-2:])] * len(batch["video"]))
    latents = module.frozen.encode_video(batch["video"])
    return {**given, "latents": latents, "text": text[:, : int(text.any(dim=2).any(dim=0).sum())], "frame_size": size}


class Refusing:
    """Stands for frozen parts that must not run."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} of a frozen part was asked for")


def test_a_batch_of_latents_trains_as_its_video_does_and_runs_no_frozen_part() -> None:
    module, batch = ready()
    latents = encoded(module, batch)
    expected = [
        module.training_step(batch, 0),
        *(module.matched_losses(batch)[name].per_sample for name in ("true", "null")),
    ]
    vae, module.frozen.vae = module.frozen.vae, Refusing()  # type: ignore[assignment]
    text_encoder, module.frozen.text_encoder = module.frozen.text_encoder, Refusing()  # type: ignore[assignment]
    module._looked_at.clear()
    module.batch_checks = replace(module.batch_checks, vae=vae)
    found = [
        module.training_step(latents, 0),
        *(module.matched_losses(latents)[name].per_sample for name in ("true", "null")),
    ]
    assert torch.equal(found[0]["loss"], expected[0]["loss"])
    assert torch.equal(found[0]["loss_per_frame"], expected[0]["loss_per_frame"])
    assert torch.equal(found[1], expected[1]) and torch.equal(found[2], expected[2])
    assert not torch.equal(found[1], found[2]), "actions act"
    changed = {**latents, "latents": latents["latents"] + 0.1}
    assert not torch.equal(module.training_step(changed, 0)["loss"], expected[0]["loss"])
    changed = {**latents, "text": latents["text"] + 0.1}
    assert not torch.equal(module.training_step(changed, 0)["loss"], expected[0]["loss"])
    module.frozen.vae, module.frozen.text_encoder = vae, text_encoder
    module.training_step(batch, 0)
    flops = module.flops_per_batch
    module.training_step(latents, 0)
    assert module.flops_per_batch == flops > 0


def test_a_batch_of_latents_generates_as_its_video_does() -> None:
    module, batch = ready()
    latents = encoded(module, batch)
    assert torch.equal(module.generate(latents), module.generate(batch))
    assert torch.equal(module.generate({**latents, "action": None}), module.generate({**batch, "action": None}))
    expected, found = module.predict_step(batch, 0), module.predict_step(latents, 0)
    assert torch.equal(found["video"], expected["video"]) and torch.equal(found["latents"], expected["latents"])
    reconstructed = to_unit_range(module.frozen.vae.decode(module.frozen.encode_video(batch["video"])))
    assert torch.equal(found["truth"], reconstructed) and torch.equal(expected["truth"], to_unit_range(batch["video"]))
    assert module.true_video({}) is None
    few = {**latents, "latents": latents["latents"][:, :1]}
    assert torch.equal(module.generate(few), module.generate(batch)) and "truth" not in module.predict_step(few, 0)


def test_latents_of_another_codec_are_refused() -> None:
    module, batch = ready()
    latents = encoded(module, batch)
    for wrong in (latents["latents"][:, :, :6], latents["latents"][..., :3]):
        with pytest.raises(ValueError, match=r"`latents` of frames of 16 x 16 are \[B, F, 7, 4, 4\] with LinearVideoC"):
            module.training_step({**latents, "latents": wrong}, 0)
    with pytest.raises(ValueError, match="needs `frame_size`"):
        module.training_step({key: value for key, value in latents.items() if key != "frame_size"}, 0)


def test_a_fit_from_latents_reads_no_text_encoder(tmp_path: Path) -> None:
    class Unread(HashingTextEncoder):
        def load(self) -> None:
            raise AssertionError("it is read")

    def module() -> ActionVideoModule:
        return ActionVideoModule(
            build_generator,
            lambda: Unread(6, 4),
            lambda: LinearVideoCodec(7, patch_size=4),
            action_projection=build_projection,
            schema=data().action_schema,
        )

    encoder, videos = module(), data()
    prepare_frozen(encoder, videos, tmp_path / "store")
    splits, schema = clips_of(videos)
    encoding = encoding_of(encoder, schema, frame_size_of(splits["train"][0], encoder, schema), "float32")
    encode(StoreWriter(tmp_path / "store", encoding, 10**6), encoder.frozen, splits, torch.device("cpu"))
    source = LatentDataModule(str(tmp_path / "store"), LATENTS, "clip_start", batch_size=3, eval_batch_size=2)
    trained = module()
    trainer(tmp_path, max_steps=2, limit_val_batches=1, val_check_interval=2).fit(trained, source)
    assert trained.frozen.vae.identity() == encoder.frozen.vae.identity(), "the codec comes with the store"
    with pytest.raises(AssertionError, match="it is read"):
        trainer(tmp_path, max_steps=1).fit(module(), data())
