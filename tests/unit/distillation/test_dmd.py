"""Both losses of distribution matching, and which parameters each of them moves, and when."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_action.checkpoints.lora import LoRASettings
from lightning_action.diffusion.noise import own_noise
from lightning_action.distillation.dmd import ActionDistillation
from lightning_action.distillation.score import LatentClip, modulation_of
from lightning_action.distillation.self_rollout import SelfRollout
from lightning_action.generation.rollout import CausalRollout
from lightning_action.generation.sampling import Sampling
from lightning_action.generation.video import VideoGenerator
from lightning_action.generator.causality import BlockCausality
from lightning_action.optimization import Optimization
from lightning_action.seeding import mix_seed
from tests.support.small_distillation import LATENTS, STEPS, data, fitted, state, student, write_teacher
from tests.support.small_generator import fill


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


def ready(teacher: Path, **changes: Any) -> tuple[ActionDistillation, dict[str, Any]]:
    """A student, a critic and a teacher that all differ, in float64, and a batch."""
    settings = {"generator_every": 1, **changes}
    module = fitted(student(ActionDistillation, teacher, **settings), teacher, max_steps=1).double()
    module.teacher.double()
    fill(module.critic, 8, 0.05)
    fill(module.generator, 9, 0.05)
    module.log = lambda *args, **kwargs: None  # type: ignore[assignment]
    module.zero_grad()
    return module, data().dataset("train").batch([0, 5])


def groups(module: ActionDistillation) -> dict[str, list[torch.nn.Parameter]]:
    assert module.action_projection is not None
    own = [*module.generator.parameters(), *module.action_projection.parameters()]
    return {"student": own, "critic": list(module.critic.parameters()), "teacher": list(module.teacher.parameters())}


def clip_of(module: ActionDistillation, batch: dict[str, Any], clean: Tensor, num_initial_latents: int) -> LatentClip:
    return module._clip(clean, module.frozen.text_of(batch, "cpu", clean.dtype), batch, num_initial_latents)


@pytest.mark.parametrize("sight", ["causal", "bidirectional"])
@pytest.mark.parametrize("num_initial", [0, 1])
def test_the_step_is_that_of_a_straightforward_reference(teacher: Path, sight: Any, num_initial: int) -> None:
    """Loss and gradients of both networks in float64, with guidance of the teacher by actions."""
    sampling = Sampling(denoising_step_list=STEPS, num_initial_latents=num_initial)
    settings = {"sampling": sampling, "score_sight": sight, "teacher_action_guidance_scale": 1.5}
    module, batch = ready(teacher, **settings)
    found = module.training_step(batch, 3)["loss"]
    made = module.make_clip(
        module.batch_generator.start_of(batch, module.sampling),
        None,
        batch,
        3,
        modulation_of(module.conditioning, clip_of(module, batch, torch.zeros(2, 4, 7, 4, 4).double(), 0)),
        True,
    )
    critic_loss, student_loss = reference(module, batch, made.clean, num_initial)
    modulation = modulation_of(module.conditioning, clip_of(module, batch, made.clean, 0))
    text = module.frozen.text_of(batch, "cpu", torch.float64)
    video = made.with_gradient(module.generator, text, module.schedule, modulation)
    expected = critic_loss + student_loss(video)
    torch.testing.assert_close(found, expected)
    trained = [*groups(module)["student"], *groups(module)["critic"]]
    mine, theirs = (torch.autograd.grad(loss, trained, allow_unused=True) for loss in (found, expected))
    for ours, other in zip(mine, theirs, strict=True):
        # Norms are in float32 in any case.
        torch.testing.assert_close(ours, other, atol=1e-8, rtol=1e-5)
    moved = [gradient is not None and float(gradient.abs().max()) > 1e-9 for gradient in mine]
    assert sum(moved) > 0.9 * len(moved)


def reference(module: ActionDistillation, batch: dict[str, Any], clean: Tensor, num_initial: int) -> tuple[Tensor, Any]:
    """From the definition, with the levels and the noise that the module draws."""
    from lightning_action.distillation.distribution_matching import draw_score_levels

    text = module.frozen.text_of(batch, "cpu", torch.float64)
    vectors, present = module.schema.encode(batch["action"], LATENTS)
    bidirectional = module.score_sight == "bidirectional"
    blocks = [range(LATENTS)] if bidirectional else [range(i, i + 1) for i in range(LATENTS)]

    def noised(stream: int) -> tuple[Tensor, Tensor, Tensor]:
        randoms = module._randoms(batch, stream, 3)
        level = draw_score_levels(module.schedule, blocks, randoms)
        level[:, :num_initial] = 0
        noise = own_noise(clean.shape[1:], randoms, clean)
        sigma = (level / 1000)[:, :, None, None, None].double()
        return (1 - sigma) * clean + sigma * noise, level, noise

    def velocity(score: Any, noisy: Tensor, level: Tensor, acts: bool = True) -> Tensor:
        modulation = score.action_projection(vectors.double(), present) if acts else None
        if bidirectional:
            return score.generator(noisy, level, text, modulation)  # type: ignore[no-any-return]
        return score.generator.teacher_forcing(clean, noisy, level, text, module.causality, modulation)  # type: ignore[no-any-return]

    noisy, level, noise = noised(24)
    error = (velocity(module.critic, noisy, level) - (noise - clean)).float()
    critic_loss = error[:, num_initial:].square().mean()

    def student_loss(video: Tensor) -> Tensor:
        noisy, level, _ = noised(23)
        sigma = (level / 1000)[:, :, None, None, None].double()
        with torch.no_grad():
            own, null = (velocity(module.teacher, noisy, level, acts) for acts in (True, False))
            real = noisy - sigma * (own + 0.5 * (own - null))
            fake = noisy - sigma * velocity(module.critic, noisy, level)
            distance = (video - real).abs()
            if bidirectional:
                scale = distance[:, num_initial:].mean(dim=(1, 2, 3, 4), keepdim=True)
            else:
                scale = distance.mean(dim=(2, 3, 4), keepdim=True)
                scale[:, :num_initial] = 1  # nothing is changed there
            gradient = (fake - real) / scale
        aim = (video - gradient).detach()
        return (video - aim)[:, num_initial:].square().mean() / 2

    return critic_loss, student_loss


def test_each_loss_moves_its_own_network(teacher: Path) -> None:
    module, batch = ready(teacher)
    clip = clip_of(module, batch, torch.randn(2, LATENTS, 7, 4, 4, dtype=torch.float64), 1)
    module.critic_loss(clip, 0).backward()
    has = {name: any(p.grad is not None for p in its) for name, its in groups(module).items()}
    assert has == {"student": False, "critic": True, "teacher": False}
    module.zero_grad()
    video = module.make_clip(
        module.batch_generator.start_of(batch, module.sampling),
        None,
        batch,
        0,
        modulation_of(module.conditioning, clip),
        True,
    )
    module.student_loss(
        clip,
        video.with_gradient(module.generator, clip.text, module.schedule, modulation_of(module.conditioning, clip)),
        0,
    ).backward()
    has = {name: any(p.grad is not None for p in its) for name, its in groups(module).items()}
    assert has == {"student": True, "critic": False, "teacher": False}


class Watch(L.Callback):
    """Weights before each step, gradients behind the clipping, and what was logged."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.norms: list[dict[str, float]] = []
        self.logged: list[set[str]] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        self.states.append(state(module))

    def on_before_zero_grad(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        of = {name: [p.grad for p in its if p.grad is not None] for name, its in groups(module).items()}
        self.norms.append({name: float(torch.nn.utils.get_total_norm(g)) if g else 0.0 for name, g in of.items()})

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        self.logged.append({name for name in trainer.callback_metrics if name.startswith("train/")})

    def moved(self, step: int) -> set[str]:
        before, after = self.states[step], self.states[step + 1]
        return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_the_critic_trains_in_every_step_and_the_student_in_every_third(teacher: Path, tmp_path: Path) -> None:
    watch = Watch()
    module = student(ActionDistillation, teacher, generator_every=3, gap_every=2)
    fitted(module, tmp_path, watch, max_steps=7)
    both = {"generator", "action_projection", "critic"}
    assert [watch.moved(step) for step in range(6)] == [{"critic"}, {"critic"}, both] * 2
    assert watch.logged[1] == {"train/critic_loss"}
    assert watch.logged[2] - watch.logged[1] == {"train/generator_loss", "train/score_gap"}
    assert watch.logged[5] - watch.logged[2] == {"train/score_gap_without_actions"}
    first, start = watch.states[0], module.teacher.state_dict()
    for part in ("", "critic."):
        assert all(torch.equal(first[f"{part}{name}"], tensor) for name, tensor in start.items())


def test_the_critic_may_go_first(teacher: Path, tmp_path: Path) -> None:
    watch = Watch()
    fitted(student(ActionDistillation, teacher, generator_every=2, critic_first_steps=3), tmp_path, watch, max_steps=5)
    both = {"generator", "action_projection", "critic"}
    assert [watch.moved(step) for step in range(4)] == [{"critic"}, {"critic"}, {"critic"}, both]


def test_each_network_is_clipped_by_itself(teacher: Path, tmp_path: Path) -> None:
    found = {}
    for clip in (None, 0, 0.1, 1e-4):
        watch = Watch()
        settings: dict[str, Any] = {"generator_every": 1, "critic_optimization": Optimization(warmup_steps=0)}
        fitted(student(ActionDistillation, teacher, **settings), tmp_path, watch, max_steps=3, gradient_clip_val=clip)
        found[clip] = watch.norms[-1]
    assert found[0] == found[None]
    assert found[None]["critic"] > 0.1 > found[None]["student"] > 1e-4
    assert found[0.1] == pytest.approx({"critic": 0.1, "student": found[0.1]["student"], "teacher": 0}, rel=1e-3)
    assert found[1e-4] == pytest.approx({"critic": 1e-4, "student": 1e-4, "teacher": 0}, rel=2e-2)


def test_a_clip_in_training_is_what_the_student_generates(teacher: Path) -> None:
    """With what `predict` generates with, for the same noise and the steps up to the exit."""
    module, batch = ready(teacher, causality=BlockCausality(1, 3, 1))
    exits = set()
    for batch_idx in range(6):
        modulation = module._rollout_modulation(clip_of(module, batch, torch.zeros(2, LATENTS, 7, 4, 4).double(), 0))
        made = module.make_clip(
            module.batch_generator.start_of(batch, module.sampling), None, batch, batch_idx, modulation, True
        )
        num_steps = int(made.exits[0].timestep[0, 0] != 1000) + 1
        exits.add(num_steps)
        sampling = Sampling(
            denoising_step_list=STEPS[:num_steps], seed=mix_seed(module.seed, 21, module.current_epoch, batch_idx)
        )
        blocks = list(module.stream_latents(batch, replace(sampling, num_initial_latents=1)))
        assert torch.equal(torch.cat(blocks, dim=1), made.clean)
    assert exits == {1, 2}


@pytest.mark.parametrize("exit_step", [0, 1])
def test_the_critic_learns_what_the_student_is_scored_on(
    teacher: Path, monkeypatch: pytest.MonkeyPatch, exit_step: int
) -> None:
    """Without a clean pass too, where blocks are denoised to the end wherever they exit."""
    sampling = Sampling(denoising_step_list=STEPS, context="last_step")
    module, batch = ready(teacher, sampling=sampling, last_exit_probability=float(exit_step))
    seen: dict[str, LatentClip] = {}
    for name in ("critic_loss", "student_loss"):
        loss = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda clip, *rest, n=name, of=loss: (seen.update({n: clip}), of(clip, *rest))[1]
        )
    module.training_step(batch, 0)
    critics, students = seen["critic_loss"], seen["student_loss"]
    torch.testing.assert_close(critics.clean, students.clean, atol=1e-8, rtol=1e-6)
    assert critics.past is not None and torch.equal(critics.past, students.past)
    assert torch.equal(critics.past, critics.clean) == (exit_step == 1)


def test_levels_of_scores_and_exits_are_drawn_as_asked(teacher: Path) -> None:
    _, batch = ready(teacher)
    settings = {"score_timestep_shift": 1.0, "last_exit_probability": 1.0}
    usual, other = (student(ActionDistillation, teacher, **changes) for changes in ({}, settings))
    clip = LatentClip(torch.zeros(2, LATENTS, 7, 4, 4), torch.zeros(2, 4, 6), batch, usual.causality)
    levels = [torch.stack([m._noised(clip, i, 23).timestep for i in range(20)]).mean() for m in (usual, other)]
    # Means of the table with shift 5, and without a shift.
    assert levels[0] > 680 and 400 < levels[1] < 600
    assert usual.exit_probabilities.tolist() == [0.5, 0.5] and other.exit_probabilities.tolist() == [0, 1]


def test_blind_scores_do_not_know_the_actions(teacher: Path) -> None:
    seeing, batch = ready(teacher)
    blind, _ = ready(teacher, action_blind=True)
    other = {**batch, "action": -batch["action"]}
    clean = torch.randn(2, LATENTS, 7, 4, 4, dtype=torch.float64)
    for module, sees in ((seeing, True), (blind, False)):
        own, its = (module.critic_loss(clip_of(module, each, clean, 1), 0) for each in (batch, other))
        assert torch.equal(own, its) != sees
        noised = module._noised(clip_of(module, batch, clean, 1), 0, 23)
        own, its = (module.teacher.clean(clip_of(module, each, clean, 1), noised) for each in (batch, other))
        assert torch.equal(own, its) != sees
        clips = [
            module.make_clip(
                module.batch_generator.start_of(each, module.sampling),
                None,
                each,
                0,
                modulation_of(module.conditioning, clip_of(module, each, clean, 1)),
                False,
            )
            for each in (batch, other)
        ]
        assert not torch.equal(clips[0].clean, clips[1].clean), "the student acts in both"


def test_lora_on_both_trains_lora_and_actions_alone(teacher: Path, tmp_path: Path) -> None:
    watch, lora = Watch(), LoRASettings(rank=2, target_modules=["q", "ffn.0"])
    settings = {"lora": lora, "critic_lora": lora, "generator_every": 1}
    frozen = Optimization(lora_learning_rate=0.1, warmup_steps=0, train_backbone=False)
    module = student(ActionDistillation, teacher, **settings, optimization=frozen, critic_optimization=frozen)
    fitted(module, tmp_path, watch, max_steps=4)
    first, last = watch.states[0], watch.states[-1]
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert all("lora_" in name or "action_projection" in name for name in moved)
    assert {name for name in first if "lora_" in name} <= moved
    names = [group["name"] for group in module.trainer.optimizers[0].param_groups]
    assert names == ["action", "lora", "critic_action", "critic_lora"]
    loaded = module.teacher.generator.state_dict()["blocks.0.self_attn.q.weight"]
    assert torch.equal(first["critic.generator.blocks.0.self_attn.q.base_layer.weight"], loaded)


def test_real_clips_take_part_if_asked(teacher: Path) -> None:
    module, batch = ready(teacher)
    without = module.training_step(batch, 0)["loss"]
    module.real_clips_weight = 0.5
    encoded = module._encoded(batch)
    own = module.losses.of_training(encoded, module.current_epoch, 0, 0.0).per_sample.mean()
    torch.testing.assert_close(module.training_step(batch, 0)["loss"], without + 0.5 * own)


def test_a_student_starts_from_another_run_and_the_critic_from_the_teacher(teacher: Path, tmp_path: Path) -> None:
    first = fitted(student(ActionDistillation, teacher, generator_every=1), tmp_path, max_steps=2)
    first.trainer.save_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    watch = Watch()
    second = fitted(student(ActionDistillation, teacher, start=str(tmp_path)), tmp_path / "second", watch, max_steps=1)
    begun, left = watch.states[0], state(first)
    assert all(torch.equal(begun[name], left[name]) for name in left if not name.startswith("critic."))
    its = second.teacher.state_dict()
    assert all(torch.equal(begun[f"critic.{name}"], tensor) for name, tensor in its.items())
    assert not torch.equal(left["critic.generator.head.head.weight"], begun["critic.generator.head.head.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator_every": 0}, "generator_every"),
        ({"critic_first_steps": -1}, "critic_first_steps"),
        ({"score_sight": "everything"}, "expected score_sight causal or bidirectional, got 'everything'"),
        ({"real_clips_weight": -1.0}, "real_clips_weight"),
    ],
)
def test_what_does_not_go_is_refused(teacher: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        student(ActionDistillation, teacher, **changes)


def made_in_chunks(
    module: ActionDistillation, batches: list[dict[str, Any]], student_changes: bool = False
) -> tuple[list[SelfRollout], list[Tensor]]:
    """The clips of some batches, each going on from the one before, and the modulation that scores see."""
    module._going = None
    made, modulations = [], []
    for batch_idx, batch in enumerate(batches):
        if student_changes and module._going is not None:
            module._going = replace(module._going, num_updates=-1)
        start = module.batch_generator.start_of(batch, module.sampling)
        going = module._going_on(start, batch)
        if going is not None:
            start, batch = going.next(start, batch, module.schema)
        clean = torch.zeros(2, LATENTS, 7, 4, 4).double()
        modulations.append(modulation_of(module.conditioning, clip_of(module, batch, clean, start.num_initial_latents)))
        made.append(module.make_clip(start, going, batch, batch_idx, modulations[-1], True))
    return made, modulations


@pytest.mark.parametrize(
    ("context", "student_changes", "num_initial"),
    [("clean", False, 1), ("clean", True, 1), ("last_step", False, 1), ("clean", False, 2), ("clean", False, 0)],
)
def test_a_rollout_goes_on_under_the_next_batches_actions_and_prompts(
    teacher: Path, context: Any, student_changes: bool, num_initial: int
) -> None:
    """It is the video that generation makes under these actions, with the prompts switched at the same frames.

    The cache is kept where the prompts stay, unless the student changes. From noise it goes on from a block.
    """
    steps = [1000.0] if context == "clean" else STEPS
    sampling = Sampling(denoising_step_list=steps, context=context, num_initial_latents=num_initial)
    module, _ = ready(teacher, sampling=sampling, chunks_per_rollout=3)
    batches = [data().dataset("train").batch(pair) for pair in ([0, 5], [1, 6], [2, 7], [3, 4])]
    batches[1]["prompt"] = batches[0]["prompt"]
    made, modulations = made_in_chunks(module, batches, student_changes)
    overlap = num_initial or 1
    video, together = (
        torch.cat([parts[0], parts[1][:, overlap:], parts[2][:, overlap:]], dim=1)
        for parts in ([each.clean for each in made], modulations)
    )
    for (before, acted), (after, acts) in pairwise(zip(made[:3], modulations[:3], strict=True)):
        assert torch.equal(after.clean[:, :overlap], before.clean[:, -overlap:])
        # Scores see what the latents in common were made under; the first of a clip has no actions.
        common = overlap - 1
        assert torch.equal(acts[:, 1:overlap], acted[:, LATENTS - common :])
    texts = [module.frozen.text_of(batch, "cpu", torch.float64) for batch in batches]
    seeded = replace(module.sampling, seed=mix_seed(module.seed, 21, module.current_epoch, 0))
    videos = VideoGenerator(module.generator, module.causality, seeded, module.schedule)
    real = [module.frozen.latents_of(batch, "cpu", torch.float64)[:, :num_initial] for batch in batches]
    first, second = LATENTS, 2 * LATENTS - overlap
    switches = {True: {first: texts[1], second: texts[2]}, False: {second: texts[2]}}
    arguments = ([0, 5], (video.shape[1], 7, 4, 4), together, real[0] if num_initial else None)
    with torch.no_grad():
        expected, other = (
            torch.cat(list(videos.stream_latents(texts[0], *arguments, switches=each)), dim=1)
            for each in (switches[student_changes], switches[not student_changes])
        )
    assert torch.equal(expected, video) and not torch.equal(other, video)
    assert torch.equal(made[3].clean[:, :num_initial], real[3])
    again = made[1].with_gradient(module.generator, texts[1], module.schedule, modulations[1])
    if context == "clean":
        torch.testing.assert_close(again, made[1].clean, atol=2e-5, rtol=0)
    again.sum().backward()
    assert module.generator.head.head.weight.grad is not None


def test_the_cache_is_recomputed_once_the_student_has_changed(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under one prompt; the student first moves in step 4, and then in every second one."""
    steps: list[int] = []

    def noted(session: CausalRollout, text: Tensor) -> None:
        steps.append(module.global_step)

    monkeypatch.setattr(CausalRollout, "switch_prompt", noted)
    settings: dict[str, Any] = {"generator_every": 2, "critic_first_steps": 3, "chunks_per_rollout": 9}
    module = student(ActionDistillation, teacher, **settings)
    monkeypatch.setattr(module.frozen, "text_of", lambda batch, *to: torch.zeros(len(batch["prompt"]), 4, 6))
    fitted(module, tmp_path, max_steps=7)
    assert steps == [4, 6]


def test_a_rollout_that_goes_on_trains(teacher: Path, tmp_path: Path) -> None:
    watch = Watch()
    module = student(ActionDistillation, teacher, generator_every=2, chunks_per_rollout=3)
    fitted(module, tmp_path, watch, max_steps=6)
    assert watch.moved(1) == {"generator", "action_projection", "critic"} == watch.moved(3)
    assert module._going is not None and module._going.num_chunks == 3
    with pytest.raises(ValueError, match="needs a window"):
        student(ActionDistillation, teacher, chunks_per_rollout=2, causality=BlockCausality(1))


def test_a_rollout_that_could_not_go_on_is_refused_with_its_first_batch(teacher: Path) -> None:
    settings: dict[str, Any] = {"causality": BlockCausality(2, 4), "score_sight": "bidirectional"}
    with pytest.raises(ValueError, match="3 latent frames from frame 4 on are not a whole number of blocks"):
        ready(teacher, chunks_per_rollout=2, **settings)
    ready(teacher, **settings)


def test_a_rollout_begins_anew_where_any_rank_has_a_batch_of_another_kind(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, batch = ready(teacher, chunks_per_rollout=3)
    batch["has_action"] = torch.tensor([True, False])
    start, smaller = (
        module.batch_generator.start_of(each, module.sampling) for each in (batch, data().dataset("train").batch([3]))
    )
    module._going = None
    module.make_clip(start, None, batch, 0, None, False)
    assert module._going_on(start, batch) is module._going
    assert module._going_on(smaller, batch) is None
    assert module._going_on(start._replace(shape=(5, *start.shape[1:])), batch) is None
    for others in ({"has_action": torch.tensor([True, True])}, {"action": None}):
        assert module._going_on(start, {**batch, **others}) is None
    monkeypatch.setattr(module.trainer.strategy, "reduce_boolean_decision", lambda fits, all: False)
    assert module._going_on(start, batch) is None
