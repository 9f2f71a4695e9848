"""Distribution matching distillation under actions: a student that learns from its own rollouts.

DMD2 (Yin et al. 2024, arXiv:2405.14867) on rollouts under the student's own cache, as Self Forcing (Huang et al. 2025,
arXiv:2506.08009). Teacher and critic see the actions that the rollout was made under: one that does not see them scores
the average over all actions, and draws the student there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_action.batch import Batch, samples_without_action
from lightning_action.checkpoints.lora import LoRASettings
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.noise import frame_noise, own_noise
from lightning_action.distillation.distilled_module import DistilledModule
from lightning_action.distillation.distribution_matching import (
    draw_score_levels,
    matching_gradient,
    matching_loss,
    score_gap,
)
from lightning_action.distillation.going_rollout import GoingRollout
from lightning_action.distillation.score import (
    LatentClip,
    Noised,
    ScoreNetwork,
    denoising_loss,
    frames_that_count,
    groups_of,
    with_noise,
)
from lightning_action.distillation.self_rollout import SelfRollout, SelfRollouts, exit_probabilities
from lightning_action.generation.batch_generator import RolloutStart
from lightning_action.generation.rollout import CausalRollout
from lightning_action.generation.video import VideoGenerator
from lightning_action.module.action_video_module import trained_groups
from lightning_action.optimization import JointOptimization, Optimization
from lightning_action.ranges import require_numbers
from lightning_action.seeding import generator_for, mix_seed

_ROLLOUT_STREAM, _EXIT_STREAM, _GENERATOR_STREAM, _CRITIC_STREAM = range(21, 25)
_CRITIC = "critic_"


class ActionDistillation(DistilledModule):
    """Distribution matching distillation whose teacher and critic see the actions.

    In every step the student makes a clip, from noise or from the first latents of a real one, and stops at a step that
    is drawn anew, the same on all ranks. The critic learns to denoise these clips; every `generator_every` steps the
    student learns too, from what teacher and critic differ in, through the step where it stopped alone.

    Both networks train in one AdamW with groups of their own, see `JointOptimization`, so that one step of the Trainer
    is one step of the critic. Gradients of each are clipped by themselves. `EMA` with `parts: [generator,
    action_projection]` and `every_n_steps` as `generator_every` averages the student.

    Args:
        args: Arguments of `GenerativeModule`.
        generator_every: Steps of the critic for one of the student. `optimization.warmup_steps` counts the critic's.
        critic_first_steps: Steps at the start in which the critic alone learns: it begins as the teacher, so that what
            the two differ in is noise until it knows what the student makes.
        score_sight: Frames that a frame sees where clips are scored: `causal`, its past, or `bidirectional`, all of the
            clip.
        critic_lora: LoRA layers on the critic; None for none.
        critic_optimization: Settings of AdamW for the critic; without `train_backbone`, of its LoRA and actions alone.
        score_timestep_shift: Shift of the noise levels that clips are scored at; None takes `timestep_shift`.
        last_exit_probability: Chance that the last step is the exit step, the others sharing the rest; None draws all
            alike. What a student shows is what its last step makes.
        real_clips_weight: Weight of the student's own flow matching on the batch's real clips; 0 for none.
        chunks_per_rollout: Number of batches over which a rollout goes on, each time from its own last latents, under
            the next batch's actions and prompts; 1 begins anew with each, as do batches of another size. It goes on
            from as many latents as clips start from, `sampling.num_initial_latents`, or from a block where they start
            from noise. The cache is kept; where the prompts or the student have changed it is recomputed, but for the
            sink. The loss is of the new frames alone. A checkpoint ends the rollout, so that a fit which goes on from
            it is as one that did not stop. Teacher and critic see a chunk as a clip, whose first latent is one that
            came later: where the VAE makes the first latent of a video of fewer frames than the others, as Wan's does,
            that is no latent that a video begins with.
        gap_every: Steps of the student from one measurement of the gap without actions to the next.
        kwargs: Arguments of `DistilledModule` by their names.
    """

    critic: ScoreNetwork

    def __init__(
        self,
        *args: Any,
        generator_every: int = 5,
        critic_first_steps: int = 0,
        score_sight: Literal["causal", "bidirectional"] = "causal",
        critic_lora: LoRASettings | None = None,
        critic_optimization: Optimization = Optimization(),
        score_timestep_shift: float | None = None,
        last_exit_probability: float | None = None,
        real_clips_weight: float = 0.0,
        chunks_per_rollout: int = 1,
        gap_every: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        counts = {"generator_every": generator_every, "gap_every": gap_every, "chunks_per_rollout": chunks_per_rollout}
        require_numbers(counts, 1, whole=True)
        require_numbers({"critic_first_steps": critic_first_steps}, 0, whole=True)
        require_numbers({"real_clips_weight": real_clips_weight}, 0)
        if score_sight not in ("causal", "bidirectional"):
            raise ValueError(f"expected score_sight causal or bidirectional, got {score_sight!r}")
        if chunks_per_rollout > 1 and not self.causality.local_attn_size:
            raise ValueError("a rollout that goes on (chunks_per_rollout) needs a window, causality.local_attn_size")
        self.generator_every, self.critic_first_steps = generator_every, critic_first_steps
        self.chunks_per_rollout = chunks_per_rollout
        self._going: GoingRollout | None = None
        self.score_sight = score_sight
        self.score_schedule = FlowMatchSchedule(
            self.schedule.shift if score_timestep_shift is None else score_timestep_shift
        )
        self.exit_probabilities = exit_probabilities(len(self.timesteps), last_exit_probability)
        self.critic_optimization = critic_optimization
        self.real_clips_weight = real_clips_weight
        self.gap_every = gap_every
        self._critic_factories = replace(
            self._factories, lora=critic_lora, train_backbone=critic_optimization.train_backbone
        )

    def _build_beside(self) -> None:
        """Build the critic, which starts as a teacher of its size, else as the student."""
        starts = not self._resumes
        self.critic = self._build_score(self._critic_factories, starts, self.score_sight, self.action_blind)
        student = VideoGenerator(self.generator, self.causality, self.sampling, self.schedule)
        self.rollouts = SelfRollouts(student, self.timesteps)
        if starts:
            of_teacher, own = self._teacher_factories, self._factories
            is_teacher = (of_teacher.generator, of_teacher.action_projection) == (own.generator, own.action_projection)
            weights = self.teacher_weights if is_teacher else self.initial_weights
            weights.load(self.critic.generator, self.critic.action_projection, self.schema)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Train the critic on a clip that the student makes, and every `generator_every` steps the student too.

        What is drawn follows from (seed, epoch, batch_idx, sample_id) alone.

        Returns:
            `loss`, the sum of both.
        """
        self._require_trainable(batch, "train")
        trains_student = self.trains_student
        start = self.batch_generator.start_of(batch, self.sampling)
        going = self._going_on(start, batch)
        if going is not None:
            start, batch = going.next(start, batch, self.schema)
        clip = self._clip(
            torch.zeros(len(start.text), *start.shape).to(start.text), start.text, batch, start.num_initial_latents
        )
        with torch.set_grad_enabled(trains_student):
            modulation = self._rollout_modulation(clip)
        made = self.make_clip(start, going, batch, batch_idx, modulation, trains_student)
        # The critic learns what the student is scored on; blocks behind see what generation leaves in the cache.
        clip = clip._replace(clean=made.exited, past=made.clean)
        loss = self.critic_loss(clip, batch_idx)
        self.log("train/critic_loss", loss, prog_bar=True)
        if trains_student:
            # Before torch 2.10 autocast kept weights that were cast without gradient, and they would get none here.
            torch.clear_autocast_cache()
            video = made.with_gradient(self.generator, start.text, self.schedule, modulation)
            student = self.student_loss(clip._replace(clean=video.detach()), video, batch_idx)
            self.log("train/generator_loss", student, prog_bar=True)
            loss = loss + student
            if self.real_clips_weight:
                loss = loss + self.real_clips_weight * self._real_clips_loss(batch, batch_idx)
        self._require_finite_loss(loss)
        return {"loss": loss}

    def _rollout_modulation(self, clip: LatentClip) -> Tensor | None:
        """Modulation of a clip's actions, block by block as where it is generated: the same to the bit."""
        action, absent = clip.batch.get("action"), samples_without_action(clip.batch)
        return self.conditioning.of_generated_video(action, clip.clean, clip.causality, absent)

    @property
    def trains_student(self) -> bool:
        """True if the student takes part in the step that comes: the last of each `generator_every`, not too early."""
        step = self.global_step + 1
        return step > self.critic_first_steps and step % self.generator_every == 0

    def make_clip(
        self,
        start: RolloutStart,
        going: GoingRollout | None,
        batch: Batch,
        batch_idx: int,
        modulation: Tensor | None,
        for_gradient: bool,
    ) -> SelfRollout:
        """Let the student make a clip, up to an exit step that all ranks draw alike: a new one, or what comes next."""
        draw = generator_for(self.seed, _EXIT_STREAM, self.current_epoch, batch_idx)
        exit_step = int(torch.multinomial(self.exit_probabilities, 1, generator=draw))
        if going is None:
            session, num_chunks = self._new_session(start, batch, batch_idx), 1
            made = self.rollouts.make(session, start.shape[0], exit_step, modulation, start.initial, for_gradient)
        else:
            session, num_chunks = going.session, going.num_chunks + 1
            made = self._next_chunk(going, start, exit_step, modulation, for_gradient)
        if self.chunks_per_rollout > 1:
            last = made.clean[:, -self._num_overlapping(start) :]
            acts = (batch.get("action"), batch.get("has_action"))
            self._going = GoingRollout(session, start, last, *acts, num_chunks, self._num_updates)
        return made

    @property
    def _num_updates(self) -> int:
        """Number of times that the student may have changed so far."""
        return max(self.global_step, self.critic_first_steps) // self.generator_every

    def _num_overlapping(self, start: RolloutStart) -> int:
        """Number of latents that a chunk has from the one before: those that a clip starts from, or else a block."""
        return self.sampling.num_initial_latents or len(self.causality.split(start.shape[0])[0])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """End a rollout that goes on: a fit that goes on from here has none either."""
        super().on_save_checkpoint(checkpoint)
        self._going = None

    def _going_on(self, start: RolloutStart, batch: Batch) -> GoingRollout | None:
        """The rollout that goes on with a batch; None begins anew, on all ranks alike, for others pass the window."""
        if self.chunks_per_rollout > 1:
            # What a later batch adds is refused with the first.
            overlap = self._num_overlapping(start)
            self.causality.split(start.shape[0] - overlap, start.shape[0])
        going = self._going
        if going is None or going.num_chunks == self.chunks_per_rollout:
            return None
        fits = going.fits(start, batch)
        return going if self.trainer.strategy.reduce_boolean_decision(fits, all=True) else None

    def _new_session(self, start: RolloutStart, batch: Batch, batch_idx: int) -> CausalRollout:
        seed = mix_seed(self.seed, _ROLLOUT_STREAM, self.current_epoch, batch_idx)
        samples, text = batch["sample_id"].tolist(), start.text
        noise = frame_noise(seed, samples, start.shape[1:], text.device, text.dtype)
        return self.rollouts.begin(text, noise, start.shape)

    def _next_chunk(
        self, going: GoingRollout, start: RolloutStart, exit_step: int, modulation: Tensor | None, for_gradient: bool
    ) -> SelfRollout:
        """Go on under other actions and prompts; what the rollout ended with stands where a clip's start does."""
        kept = going.num_updates == self._num_updates and torch.equal(going.start.text, start.text)
        if not self.trainer.strategy.reduce_boolean_decision(kept, all=True):
            with torch.no_grad():
                # It passes the window anew, so that keys and values, but the sink's, are of the weights of now, too.
                going.session.switch_prompt(start.text)
        new = None if modulation is None else modulation[:, start.num_initial_latents :]
        made = self.rollouts.make(
            going.session, start.shape[0] - start.num_initial_latents, exit_step, new, for_gradient=for_gradient
        )
        clean, exited = (torch.cat([going.last, each], dim=1) for each in (made.clean, made.exited))
        return replace(made, clean=clean, exited=exited)

    def critic_loss(self, clip: LatentClip, batch_idx: int) -> Tensor:
        """Flow-matching loss of the critic on a clip that the student made."""
        noised = self._noised(clip, batch_idx, _CRITIC_STREAM)
        return denoising_loss(self.critic.velocity(clip, noised), clip, noised)

    def student_loss(self, clip: LatentClip, video: Tensor, batch_idx: int) -> Tensor:
        """Loss whose gradient moves the student's clip from the critic's distribution to the teacher's.

        Args:
            clip: The clip, without gradient.
            video: The same latents, with gradient.
            batch_idx: Number of the batch.
        """
        noised, counts = self._noised(clip, batch_idx, _GENERATOR_STREAM), frames_that_count(clip)
        with torch.no_grad():
            real = self.teacher.clean(clip, noised, self.teacher_guidance)
            fake = self.critic.clean(clip, noised)
            gradient = matching_gradient(video, real, fake, groups_of(self.score_sight, clip), counts)
            self._log_gap(clip, noised, score_gap(real, fake, counts))
        return matching_loss(video, gradient, counts).to(video.dtype)

    def _log_gap(self, clip: LatentClip, noised: Noised, gap: Tensor) -> None:
        """Log how far teacher and critic are apart; now and then how far they are where neither sees the actions."""
        self.log("train/score_gap", gap)
        if (self.global_step + 1) // self.generator_every % self.gap_every == 0:
            real, fake = (score.clean(clip, noised, takes_action=False) for score in (self.teacher, self.critic))
            self.log("train/score_gap_without_actions", score_gap(real, fake, frames_that_count(clip)))

    def _real_clips_loss(self, batch: Batch, batch_idx: int) -> Tensor:
        encoded = self._encoded(batch)
        losses = self.losses.of_training(encoded, self.current_epoch, batch_idx, self.action_dropout_prob)
        loss = losses.per_sample.mean()
        self.log("train/real_clips_loss", loss)
        return loss

    def _noised(self, clip: LatentClip, batch_idx: int, stream: int) -> Noised:
        randoms = self._randoms(clip.batch, stream, batch_idx)
        groups = groups_of(self.score_sight, clip)
        levels = draw_score_levels(self.score_schedule, groups, randoms).to(clip.clean.device)
        return with_noise(clip, levels, own_noise(clip.clean.shape[1:], randoms, clip.clean))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of student and critic each by themselves: one has none in most steps."""
        if gradient_clip_val is None or gradient_clip_val <= 0:  # which turns it off, as in the Trainer
            return
        for is_critic in (False, True):
            groups = [group for group in optimizer.param_groups if group["name"].startswith(_CRITIC) == is_critic]
            parameters = [parameter for group in groups for parameter in group["params"]]
            if gradient_clip_algorithm == "value":
                nn.utils.clip_grad_value_(parameters, gradient_clip_val)
            else:
                nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def _trained_parameters(self) -> dict[str, list[nn.Parameter]]:
        critic = trained_groups(self.critic.generator, (self.critic.action_projection,), _CRITIC)
        return {**super()._trained_parameters(), **critic}

    @property
    def _joint_optimization(self) -> JointOptimization:
        return JointOptimization({"": self.optimization, _CRITIC: self.critic_optimization})
