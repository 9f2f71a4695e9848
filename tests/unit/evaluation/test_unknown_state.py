"""Models that are wrong on purpose, told by name where nobody knows the state: by actions that are read off pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from lightning_action.action.schema import ActionSchema
from lightning_action.batch import Batch, to_unit_range
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld
from lightning_action.evaluation.metrics.inverse_dynamics_model import InverseDynamicsModel, columns_of
from lightning_action.evaluation.obedience import ObedienceTest
from lightning_action.evaluation.report.comparison import compare
from lightning_action.evaluation.report.figures import figures_of
from lightning_action.evaluation.report.report import Report
from lightning_action.evaluation.report.verdict import Verdict, judge

pytestmark = pytest.mark.usefixtures("few_draws")
RATIO = 3
Damage = Callable[[Tensor], Tensor]
# Walls are far: what a wall stops cannot be read off the video.
WORLD = partial(MovingSpriteWorld, image_size=24, sprite_radius=3.5, max_speed=1.0, hold_probability=0.6)


def data(discrete: bool = False, **sizes: int) -> SpriteDataModule:
    world = WORLD(action_kind="discrete" if discrete else "continuous")
    sizes = {"test_size": 12, "train_size": 48, **sizes}
    return SpriteDataModule(world, num_latents=7, temporal_compression_ratio=RATIO, **sizes)


def untrained(source: SpriteDataModule, rows: Tensor) -> InverseDynamicsModel:
    schema: ActionSchema = source.action_schema
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return InverseDynamicsModel(schema, columns_of(schema, rows.flatten(0, 1)), channels=(16, 24, 32))


@cache
def trained(discrete: bool = False) -> InverseDynamicsModel:
    """Some seconds of training on real videos."""
    source = data(discrete)
    batch = source.dataset("train").batch(range(48))
    model = untrained(source, batch["action"])
    windows = model.windows(to_unit_range(batch["video"])).flatten(0, 1)
    rows = batch["action"].flatten(0, 1)[:, None].float()
    optimizer = torch.optim.AdamW(model.parameters(), 6e-3)
    random = torch.Generator().manual_seed(0)
    for _ in range(120):
        chosen = torch.randint(len(windows), (48,), generator=random)
        optimizer.zero_grad()
        model.loss(windows[chosen], rows[chosen]).backward()
        optimizer.step()
    return model.eval()


def asked(damage: Damage, model: InverseDynamicsModel, discrete: bool = False, **sizes: int) -> ObedienceTest:
    """Of a model that shows what the simulator does under other actions than those it is given."""
    source = data(discrete, **sizes)

    def generate(batch: Batch, scale: float | None, draw: int) -> Tensor:
        begin = source.world.start(source.dataset("test").seeds(batch["sample_id"].tolist()))
        return to_unit_range(source.world.render(begin, source.world.simulate(begin, damage(batch["action"]))))

    def true_video(batch: Batch) -> Tensor:
        return to_unit_range(batch["video"])

    test = ObedienceTest(generate, true_video, source.action_schema, 1, inverse_dynamics=model)
    for batch in source.test_dataloader():
        test.add_model(batch, {})
    return test


def verdict_of(damage: Damage, model: InverseDynamicsModel | None = None, discrete: bool = False) -> Verdict:
    test = asked(damage, trained(discrete) if model is None else model, discrete)
    return judge({"episodes": 12.0, **test.compute("model")})


def unrelated(given: Tensor) -> Tensor:
    """What a model makes of actions that were shuffled between samples: nothing that was told."""
    return WORLD().sample_actions(range(90, 90 + len(given)), given.shape[1])


PARTLY: dict[str, tuple[Damage, str]] = {
    "shifted by a frame": (lambda given: given.roll(1, dims=1), "motion comes 1 frames late"),
    "shifted by a latent frame": (lambda given: given.roll(RATIO, dims=1), "motion comes 3 frames late"),
    "swapped columns": (lambda given: given.flip(-1), "move_0 and move_1 are swapped"),
    "inverted": (lambda given: given * torch.tensor([-1.0, 1.0]), "move_0 goes the wrong way"),
    "a column cut": (lambda given: given * torch.tensor([1.0, 0.0]), "move_1 does not respond"),
    "too weak": (lambda given: 0.4 * given, "move_0 responds too little"),
}


@pytest.mark.parametrize("name", PARTLY)
def test_what_is_wrong_is_named(name: str) -> None:
    damage, told = PARTLY[name]
    verdict = verdict_of(damage)
    assert verdict.label == "partly" and any(told in reason for reason in verdict.reasons), verdict


def test_a_perfect_simulator_obeys() -> None:
    verdict = verdict_of(lambda given: given)
    assert verdict.label == "obeys" and "gain move_0" in verdict.reasons[0], verdict


def test_who_follows_nothing_ignores_and_who_stands_still_is_told_to() -> None:
    shuffled, still = verdict_of(unrelated), verdict_of(lambda given: 0 * given)
    assert (shuffled.label, still.label) == ("ignores", "ignores"), (shuffled, still)
    assert "what is read off the videos is not what was given" in shuffled.reasons[0]
    assert any("stand still" in reason for reason in still.reasons), still


def stumbling(given: Tensor, on: int) -> Tensor:
    """Half as far in every other sample, of batches of 6."""
    return torch.where((torch.arange(len(given)) % 2 == on)[:, None, None], 0.5 * given, given)


@cache
def reported(damage: Damage) -> Report:
    """Of three batches of 6, of which the flow of 4 is measured."""
    return asked(damage, trained(), test_size=18, eval_batch_size=6).report()


def perfect(given: Tensor) -> Tensor:
    return given


def half(given: Tensor) -> Tensor:
    return 0.5 * given


def test_the_better_model_is_told_by_flow_and_by_what_is_read() -> None:
    worse, better = reported(half), reported(perfect)
    found = compare(worse, better, ("A", "B"))
    assert found.is_paired and "unpaired" not in found.method()
    changes = {change.figure.key: change for change in found.changes}
    counts = {"idm_gain_move_0": 18, "idm_gain_move_1": 18, "motion_ratio": 18, "flow_gain": 12, "flow_cosine": 12}
    for key, count in counts.items():
        tested = changes[key].tested
        assert changes[key].outcome == "better" and tested is not None and tested.episodes == count, key
    assert all(
        len(better["per_episode"][key]) == 18
        for key, figure in figures_of(better["intervals"]).items()
        if figure.better
    )
    assert "better" not in {change.outcome for change in compare(better, worse, ("A", "B")).changes}


def test_half_the_motion_is_told_by_flow_where_what_is_read_saturates() -> None:
    verdict = reported(half)["verdict"]
    assert verdict["label"] == "partly" and verdict["reasons"] == ["things move too little (flow gain 0.49)"]
    assert reported(perfect)["verdict"]["label"] == "obeys"


def test_a_model_that_errs_elsewhere_is_no_better() -> None:
    first, second = (reported(partial(stumbling, on=on)) for on in (0, 1))
    found = compare(first, second, ("A", "B"))
    assert first["flow_gain"] < 0.9 > second["flow_gain"]
    assert {change.outcome for change in found.changes} <= {"no more than noise", "not tested"}
    told = {change.figure.key for change in found.changes if change.tested is not None}
    assert {"flow_gain", "flow_cosine", "idm_correlation", "idm_gain_move_0", "idm_lag_frames"} <= told


def test_who_foresees_what_will_be_done_does_not_listen() -> None:
    """The videos are the recorded ones under any actions."""
    model, source = trained(), data()
    recorded = source.dataset("test").batch(range(12))["action"]
    test = asked(lambda given: recorded, model)
    verdict = judge({"episodes": 12.0, **test.compute("model")})
    assert verdict.label == "ignores" and "whatever actions are given" in verdict.reasons[0], verdict


def test_few_episodes_and_columns_that_are_not_read() -> None:
    figures = asked(lambda given: given, trained()).compute("model")
    few = judge({**figures, "episodes": 7.0})
    assert few.label == "cannot tell" and few.reasons == ("7 episodes are fewer than 8",)
    half = judge({**figures, "episodes": 12.0, "idm_correlation_real_move_1": 0.3})
    assert half.label == "obeys" and half.reasons[1] == "nothing is known of move_1: not read off real videos either"
    by_chance = judge({**figures, "episodes": 12.0, "intervals": {"idm_correlation_real_move_1": [-0.1, 0.9]}})
    assert by_chance.reasons[1] == "nothing is known of move_1: not read off real videos either"
    unknown = dict.fromkeys(("idm_gain_other_move_0", "idm_gain_other_move_1"), math.nan)
    assert judge({**figures, "episodes": 12.0, **unknown}).label == "obeys", "nothing was made under other actions"
    unclear = judge({**figures, "episodes": 12.0, "intervals": {"idm_gain_move_1": [-0.1, 1.9]}})
    assert unclear.label == "cannot tell" and "move_1 is not told by these episodes: gain 1.00" in unclear.reasons[0]
    still = judge({**figures, "episodes": 12.0, "idm_correlation_real_move_1": math.nan})
    assert still.reasons[1] == "nothing is known of move_1: it never changes in these episodes"
    nothing = judge({**figures, "episodes": 12.0, **{f"idm_correlation_real_move_{i}": math.nan for i in range(2)}})
    assert nothing.label == "cannot tell" and nothing.reasons == ("the actions never change in these episodes",)
    weak = judge({**figures, "episodes": 12.0, "idm_correlation_move_0": 0.5})
    assert weak.label == "partly" and "move_0 is followed loosely" in weak.reasons[0]
    knows = asked(unrelated, trained()).compute("model")
    rollouts = judge({**knows, "episodes": 12.0, "swapped_win_rate": 0.9})
    assert rollouts.label == "partly" and "rollouts do not follow them" in rollouts.reasons[0]


@pytest.mark.parametrize("damage", [lambda given: given, unrelated, lambda given: 0 * given])
def test_an_untrained_reader_cannot_tell(damage: Damage) -> None:
    rows = data().dataset("train").batch(range(8))["action"]
    verdict = verdict_of(damage, untrained(data(), rows).eval())
    assert verdict.label == "cannot tell" and "does not read the actions off real videos either" in str(verdict)


def test_classes() -> None:
    """Stay, +x, -x, +y, -y."""
    assert verdict_of(lambda given: given, discrete=True).label == "obeys"
    assert verdict_of(lambda given: 0 * given, discrete=True).label == "ignores"
    late = verdict_of(lambda given: given.roll(2, dims=1), discrete=True)
    assert late.label == "partly" and late.reasons == ("motion comes 2 frames late",)
