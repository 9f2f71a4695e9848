"""Base of the distillations: the teacher, where the student starts, and what trains beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_action.action.projection import ActionModulationProjection
from lightning_action.assembly import Factories
from lightning_action.batch import Batch
from lightning_action.checkpoints.run_weights import RunWeights
from lightning_action.diffusion.guidance import Guidance
from lightning_action.distillation.score import LatentClip, ScoreNetwork, Sight
from lightning_action.distributed.sharding import is_sharded
from lightning_action.generation.video import whole_video
from lightning_action.generator.model import CausalWanModel
from lightning_action.module.action_video_module import ActionVideoModule
from lightning_action.ranges import require_numbers
from lightning_action.seeding import generator_for, mix_seed

# Parts of a module that there are in a fit alone.
BESIDE = ("critic", "target")


class ActionCollapse(UserWarning):
    """A student has lost much of its teacher's control."""


class DistilledModule(ActionVideoModule):
    """A student of few steps, that learns from a frozen teacher of many which sees the actions too.

    It generates, validates and is tested as an `ActionVideoModule` is, by `sampling`, whose `denoising_step_list` says
    the student's steps. A batch is that of `ActionVideoModule`.

    Args:
        args: Arguments of `GenerativeModule`.
        teacher: Run that the teacher comes from: the folder that `fit` left, or its checkpoint in one file.
        start: Run that a new student starts from, with its actions, for example a consistency distillation. None
            starts from `pretrained`, and without that from the teacher.
        teacher_generator: Factory of the teacher's network; None is the student's.
        teacher_action_projection: Factory of the teacher's projection; None is the student's.
        teacher_prompt_guidance_scale: Weight of guidance of the teacher by prompts, as in `Sampling`.
        teacher_action_guidance_scale: Weight of guidance of the teacher by actions, as in `Sampling`.
        teacher_num_inference_steps: Number of Euler steps of the teacher's own videos, which validations compare with.
        collapse_share: Share of the teacher's control below which a validation warns of an action collapse; 0 never
            warns.
        action_blind: Hide the actions from teacher and critic. It exists to show what goes wrong then: the student
            loses control. Never train a model so.
        action_dropout_prob: Chance that a real clip is shown without its actions, where the student learns from real
            clips by flow matching too. In all else the actions are always shown.
        kwargs: Arguments of `ActionVideoModule` by their names.

    Raises:
        ValueError: The settings leave out `denoising_step_list` or actions, or the student is guided itself, or a
            setting asks for what distillation does not do.
    """

    teacher: ScoreNetwork

    def __init__(
        self,
        *args: Any,
        teacher: str,
        start: str | None = None,
        teacher_generator: Callable[[], CausalWanModel] | None = None,
        teacher_action_projection: Callable[[int, int], ActionModulationProjection] | None = None,
        teacher_prompt_guidance_scale: float = 1.0,
        teacher_action_guidance_scale: float = 1.0,
        teacher_num_inference_steps: int = 8,
        collapse_share: float = 0.5,
        action_blind: bool = False,
        action_dropout_prob: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, action_dropout_prob=action_dropout_prob, **kwargs)
        scales = {"prompt": teacher_prompt_guidance_scale, "action": teacher_action_guidance_scale}
        require_numbers({f"teacher_{name}_guidance_scale": scale for name, scale in scales.items()})
        require_numbers({"teacher_num_inference_steps": teacher_num_inference_steps}, 1, whole=True)
        require_numbers({"collapse_share": collapse_share}, 0, 1)
        steps = self.sampling.denoising_step_list
        if steps is None:
            raise ValueError("a student has few steps: name them in sampling.denoising_step_list, falling from 1000")
        if self.sampling.first_denoising_step_list is not None:
            raise ValueError("a student learns one list of steps: leave sampling.first_denoising_step_list out")
        if len(self.sampling.guidance.branches) > 1:
            raise ValueError("a student is not guided, its teacher is: leave the guidance of sampling at 1")
        if self.sampling.relative_positions:
            raise ValueError("a student learns positions in the video: leave sampling.relative_positions at false")
        if self.prompt_dropout_prob:
            raise ValueError("a student is not guided by prompts, and always sees them: set prompt_dropout_prob to 0")
        if not self.takes_actions or self._factories.action_module is not None:
            raise ValueError("distillation keeps given actions: it needs an action_projection, and no action_module")
        if start is not None and self.initial_weights.generator is not None:
            raise ValueError("a student starts from `start` or from `pretrained`: give one of them")
        self.teacher_weights = RunWeights(teacher)
        self._teacher_factories = replace(
            self._factories,
            generator=teacher_generator or self._factories.generator,
            action_projection=teacher_action_projection or self._factories.action_projection,
            lora=None,
            train_backbone=False,
        )
        if self.initial_weights.generator is None:
            self.initial_weights = RunWeights(start or teacher)
        self.teacher_guidance = Guidance(teacher_prompt_guidance_scale, teacher_action_guidance_scale)
        self.teacher_num_inference_steps, self.collapse_share = teacher_num_inference_steps, collapse_share
        self._teacher_control: float | None = None
        self.action_blind = action_blind
        self.score_sight: Sight = "causal"
        self.timesteps = self.schedule.denoising_timesteps(steps, self.sampling.warp_denoising_step)

    def setup(self, stage: str) -> None:
        """Read what the run of the teacher says, beside what `GenerativeModule` reads."""
        if stage == "fit":
            # Before anything else is read: a teacher that is not there is told at once.
            self.teacher_weights.entries()
            self._require_same_settings(self.teacher_weights.saved_settings())
            if self.trainer.ckpt_path is None:
                self.teacher_weights.give_codec(self.frozen.vae)
        super().setup(stage)

    def _require_same_settings(self, saved: Mapping[str, Any] | None) -> None:
        """Refuse a teacher that was trained at other noise levels, or to see another past where scores see it."""
        if saved is None:
            rank_zero_info(
                f"no config_fit.yaml in the run of {self.teacher_weights.path}: its timestep_shift, causality and "
                "objective cannot be compared with these"
            )
            return
        here: dict[str, Any] = {"timestep_shift": self.schedule.shift}
        if self.score_sight == "causal":
            here |= {"causality": asdict(self.causality), "objective": self.objective.__name__}
        others = [
            f"{name} {saved[name]}, here it is {its}"
            for name, its in here.items()
            if name in saved and saved[name] != its
        ]
        if others:
            raise ValueError(
                f"the teacher {self.teacher_weights.path} was trained with {'; '.join(others)}: stack this "
                "configuration on the teacher's, and leave these as they are"
            )

    def settle_schema(self, ckpt_path: str | Path | None, datamodule: object) -> None:
        """Take what an action is from the teacher, where the configuration leaves it open."""
        known = self.teacher_weights.path if ckpt_path is None and self._is_fitting else ckpt_path
        super().settle_schema(known, datamodule)

    def configure_model(self) -> None:
        """Build the networks; in a fit the teacher too, and what trains beside the student."""
        if self._built:
            return
        super().configure_model()
        if not self._is_fitting:
            return
        teacher = self._build_score(self._teacher_factories, True, self.score_sight, self.action_blind)
        # As a text: what was loaded holds the file.
        loaded = str(self.teacher_weights.load(teacher.generator, teacher.action_projection, self.schema))
        rank_zero_info(f"teacher: {loaded}")
        # As a plain attribute, which no checkpoint, optimizer, average or cast sees.
        object.__setattr__(self, "teacher", teacher.eval().requires_grad_(False))
        self._build_beside()

    def _build_beside(self) -> None:
        """Build what a fit needs besides student and teacher: the parts that `BESIDE` names."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what trained beside the student, outside of a fit."""
        if not self._is_fitting and "state_dict" in checkpoint:
            own, beside = self.state_dict().keys(), tuple(f"{part}." for part in BESIDE)
            tensors = checkpoint["state_dict"]
            checkpoint["state_dict"] = {n: t for n, t in tensors.items() if n in own or not n.startswith(beside)}
        super().on_load_checkpoint(checkpoint)

    def on_fit_start(self) -> None:
        """Move the teacher to where the student is."""
        super().on_fit_start()
        if not is_sharded(self.teacher.generator):
            self.teacher.to(self.device, self.compute_dtype)

    def _rollout_figures(self, batch: Batch) -> dict[str, float]:
        """Compare, in a fit, with the teacher's rollouts of the same samples too, and warn of lost control."""
        figures = super()._rollout_figures(batch)
        control = control_of(figures)
        if not self._is_fitting or control is None:
            return figures
        if self._teacher_control is None:
            test = self._new_obedience_test("validation", generate=self._generate_as_teacher)
            test.add_own(batch)
            self._teacher_control = control_of(dict(test.compute("model")))
        teachers = self._teacher_control
        if teachers is None:
            return figures
        if has_collapsed(control, teachers, self.collapse_share):
            rank_zero_warn(
                f"action collapse: at step {self.global_step} the student makes {control:.2f} of the commanded motion, "
                f"its teacher {teachers:.2f}. Look at train/score_gap and at RolloutLogger's panel 2; lower the "
                "student's learning rates, let the critic take more steps (generator_every), or begin from a "
                "consistency distillation (start)",
                category=ActionCollapse,
            )
        return {**figures, "control": control, "teacher_control": teachers}

    def _generate_as_teacher(self, batch: Batch, scale: float | None, draw: int) -> Tensor:
        """Generate with the teacher, in Euler steps."""
        sampling = replace(
            self.sampling,
            denoising_step_list=None,
            num_inference_steps=self.teacher_num_inference_steps,
            action_guidance_scale=self.teacher_guidance.action_scale if scale is None else scale,
            prompt_guidance_scale=self.teacher_guidance.prompt_scale,
            context="clean",
        )
        if draw:
            sampling = replace(sampling, seed=mix_seed(sampling.seed, draw))
        blocks = self.batch_generator.latents(batch, sampling, self.teacher.generator, self.teacher.conditioning)
        return whole_video(blocks, self.frozen.decoder(self.device), self.device)[0]

    def _build_score(self, factories: Factories, weights_follow: bool, sight: Sight, blind: bool) -> ScoreNetwork:
        """Build a generator and its projection, sharded as the student is."""
        mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]
        generator = factories.build_generator(mesh, self.sharding, weights_follow)
        projection = factories.build_action_projection(generator, self.schema.action_dim, mesh, self.sharding)
        sharded = is_sharded(generator)
        return ScoreNetwork(generator, projection, self.schema, sight, sharded, blind)

    def _clip(self, clean: Tensor, text: Tensor, batch: Batch, num_initial_latents: int = 0) -> LatentClip:
        """A clip under the prompts and actions of a batch, and what guidance of the teacher needs."""
        guided = self.teacher_guidance.takes_negative_prompt
        negative = self.batch_generator.negative_text(batch, self.sampling) if guided else None
        return LatentClip(clean, text, batch, self.causality, num_initial_latents, negative)

    def _randoms(self, batch: Batch, stream: int, batch_idx: int) -> list[torch.Generator]:
        """A random generator for each sample, from (seed, epoch, batch, sample) alone."""
        numbers = (self.seed, stream, self.current_epoch, batch_idx)
        return [generator_for(*numbers, sample) for sample in batch["sample_id"].tolist()]


def control_of(figures: Mapping[str, float]) -> float | None:
    """Share of the commanded motion that happens, over the axes: 0 for a model that ignores its actions.

    Where nobody knows where the object is, it is the share of the true motion of pixels (`flow_gain`); None where that
    is not known either. The figure is this project's own.
    """
    for names in (("gain_x", "gain_y"), ("flow_gain",)):
        gains = [figures[name] for name in names if math.isfinite(figures.get(name, math.nan))]
        if gains:
            return sum(gains) / len(gains)
    return None


def has_collapsed(control: float, teachers: float, share: float) -> bool:
    """Tell whether a student has less than a share of its teacher's control; never where the teacher has none.

    The test is this project's own.
    """
    return share > 0 and teachers > 0 and control < share * teachers
