"""RolloutLogger on a small world of its own: what is shown, in which order, and what it costs."""

from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_action.callbacks import RolloutLogger, rollout_logger
from lightning_action.callbacks.rollout_logger import default_actions, probe_script
from lightning_action.callbacks.support.pictures import CAPTION_HEIGHT, GAP, from_image
from tests.support.short_fits import events, quiet_trainer

B, T, H, W = 3, 9, 20, 24
ROWS, COLUMNS = T - 1, 2
SIDES = (200, 240)  # enlarged ten times
STEPS = 2  # of an epoch
# Where Lightning shows the figures of the validations after them.
SHOWN_AT = [STEPS - 1, 2 * STEPS - 1]
TAGS = [
    "rollout/1_truth/sample_0",
    "rollout/1_truth/sample_1",
    "rollout/2_counterfactual/sample_0",
    "rollout/2_counterfactual/sample_1",
    "rollout/3_probe_script",
    "rollout/4_action_scan",
]


class World(BoringModel):
    """Moves the first frame of the batch by the actions; without any it goes black."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.batches: list[dict[str, Any]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        return {"loss": self.dropout(self.layer(torch.rand(1, 32))).sum()}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        pass

    def generate(self, batch: dict[str, Any]) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.batches.append(batch)
        torch.rand(1)  # moves the global random state
        videos = (batch["video"][:, :1] / 2 + 0.5).repeat(1, T, 1, 1, 1)
        if batch["action"] is None:
            return videos * torch.linspace(1, 0, T)[:, None, None, None]
        for video, rows in zip(videos, batch["action"].cumsum(1).round().int().tolist(), strict=True):
            for frame, row in zip(video[1:], rows, strict=True):
                frame.copy_(frame.roll((row[-1], row[0]), dims=(-2, -1)))
        return videos


def sample(index: int, classes: bool = False) -> dict[str, Any]:
    torch.manual_seed(index)
    return {
        "video": 2 * torch.rand(T, 3, H, W) - 1,
        "action": torch.randint(0, 3, (ROWS, 1)) if classes else torch.rand(ROWS, COLUMNS),
        "prompt": f"sample {index}",
    }


def loader(classes: bool = False) -> DataLoader[Any]:
    return DataLoader([sample(index, classes) for index in range(2 * B)], batch_size=B)  # type: ignore[arg-type]


def fit(
    folder: Path, *callbacks: Callback, module: World | None = None, classes: bool = False, **options: Any
) -> Trainer:
    options = {"limit_val_batches": 1.0, "max_epochs": 1} | options
    trainer = quiet_trainer(folder, *callbacks, **options)
    trainer.fit(module or World(), loader(classes), loader(classes))
    return trainer


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one fit of two epochs showed, to look at only."""
    folder = tmp_path_factory.mktemp("rollouts")
    logger, module = TensorBoardLogger(folder), World()
    fit(folder, RolloutLogger(), module=module, logger=logger, max_epochs=2)
    read = events(logger)
    images = {tag: read.Images(tag) for tag in read.Tags()["images"]}
    return {"images": images, "batches": module.batches, "folder": Path(str(logger.log_dir)) / "rollouts"}


def frames_of(encoded: bytes) -> Tensor:
    gif: Any = Image.open(BytesIO(encoded))
    frames = []
    for index in range(gif.n_frames):
        gif.seek(index)
        frames.append(from_image(gif))
    return torch.stack(frames)


def test_all_panels_are_there_in_order_at_every_validation(shown: dict[str, Any]) -> None:
    assert sorted(shown["images"]) == TAGS
    assert all([event.step for event in shown["images"][tag]] == SHOWN_AT for tag in TAGS)


def test_files_hold_the_same(shown: dict[str, Any]) -> None:
    for step in SHOWN_AT:
        folder = shown["folder"] / f"step_{step:08d}"
        names = [tag.removeprefix("rollout/").replace("/", "_") for tag in TAGS]
        kinds = ["gif", "gif", "png", "png", "gif", "png"]
        assert sorted(path.name for path in folder.iterdir()) == [f"{n}.{k}" for n, k in zip(names, kinds, strict=True)]
    for tag in (TAGS[0], TAGS[4]):
        path = folder / f"{tag.removeprefix('rollout/').replace('/', '_')}.gif"
        assert path.read_bytes() == shown["images"][tag][-1].encoded_image_string


def test_the_first_video_shows_generated_beside_truth_with_the_action_on_it(shown: dict[str, Any]) -> None:
    frames = frames_of(shown["images"][TAGS[1]][0].encoded_image_string)
    height, width = H * 12, W * 12  # the shorter side has at least 240 pixels
    assert frames.shape == (T, 3, CAPTION_HEIGHT + height, 2 * width + GAP)
    video = sample(1)["video"] / 2 + 0.5
    truth = frames[:, :, CAPTION_HEIGHT + 6 :: 12, width + GAP + 6 :: 12].float() / 255
    assert (truth - video).abs().mean() < 0.1  # of a palette of 256 colours
    moved = World().eval()
    with torch.no_grad():
        generated = moved.generate({"video": sample(1)["video"][None], "action": sample(1)["action"][None]})[0]
    drawn = frames[:, :, CAPTION_HEIGHT + 6 :: 12, 6:width:12].float() / 255
    top = H // 2  # the action is below
    assert (drawn[:, :, :top] - generated[:, :, :top]).abs().mean() < 0.1
    assert (drawn[:, :, -5:-1, 1:5] - generated[:, :, -5:-1, 1:5]).abs().mean() > 0.2
    assert (drawn - truth).abs().mean() > 0.2


def test_every_panel_starts_from_the_same_sample_with_the_actions_that_it_names(shown: dict[str, Any]) -> None:
    batches = shown["batches"][: len(shown["batches"]) // 2]
    own, other, null = batches[:3]
    actions = torch.stack([sample(index)["action"] for index in (0, 1)])
    assert torch.equal(own["action"], actions) and torch.equal(other["action"], actions[[1, 0]])
    assert null["action"] is None and null["prompt"] == ["sample 0", "sample 1"]
    script, without, *scan = batches[3:]
    assert without["action"] is None and len(without["video"]) == 1
    constant = {"hold": [0, 0], "+x": [1, 0], "-x": [-1, 0], "+y": [0, 1], "-y": [0, -1]}
    for rows, expected in zip(script["action"], constant.values(), strict=False):
        assert torch.equal(rows, torch.tensor(expected).float().expand(ROWS, -1))
    assert script["action"][5, :, 0].tolist() == [1, 1, 1, 1, -1, -1, -1, -1] and len(script["action"]) == 6
    assert [len(batch["video"]) for batch in scan] == [8, 8]
    rows = torch.cat([batch["action"] for batch in scan]).reshape(4, 4, ROWS, 2)
    assert torch.equal(rows[1, 3], torch.tensor([-2.0, 0.0]).expand(ROWS, -1))
    for batch in (script, *scan):
        assert torch.equal(batch["video"], sample(0)["video"].expand_as(batch["video"]))
        assert set(batch["prompt"]) == {"sample 0"}


def test_the_probe_script_is_a_grid_of_named_tiles(shown: dict[str, Any]) -> None:
    frames = frames_of(shown["images"]["rollout/3_probe_script"][0].encoded_image_string)
    height, width = SIDES
    assert frames.shape == (T, 3, 2 * (CAPTION_HEIGHT + height), 4 * width + 3 * GAP)
    tiles = [
        frames[:, :, y : y + CAPTION_HEIGHT + height, x : x + width]
        for y in (0, CAPTION_HEIGHT + height)
        for x in range(0, frames.shape[-1], width + GAP)
    ]
    assert all((tile[:, :, :CAPTION_HEIGHT] > 200).any() for tile in tiles[:7])  # captions
    assert tiles[7].float().std() == 0  # nothing is left for the eighth
    assert tiles[6][-1, :, CAPTION_HEIGHT : CAPTION_HEIGHT + height // 2].max() < 40  # without actions it goes black
    bodies = [tile[-1, :, CAPTION_HEIGHT : CAPTION_HEIGHT + height // 2].float() for tile in tiles[:6]]
    # Eight to the right and eight to the left; four and four of "alternate" end where "hold" does.
    assert (bodies[0] - bodies[5]).abs().mean() < 1
    assert all((bodies[0] - bodies[index]).abs().mean() > 20 for index in range(1, 5))


def test_pictures_are_as_large_as_they_need(shown: dict[str, Any]) -> None:
    strips, scan = (from_image(Image.open(BytesIO(shown["images"][tag][0].encoded_image_string))) for tag in TAGS[3::2])
    assert 4 * 80 < strips.shape[1] < 800 and 6 * 96 < strips.shape[2] < 1000
    assert 4 * 80 < scan.shape[1] < 800 and 12 * 96 < scan.shape[2] < 1600


def test_training_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    states = []
    for callbacks in ([], [RolloutLogger(scales=[1.0], at_start=True)]):
        torch.manual_seed(5)
        module = World()
        fit(tmp_path, *callbacks, module=module, max_epochs=2)
        states.append([*module.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_validations_are_counted_across_fits_without_sanity_checks(tmp_path: Path) -> None:
    module, rollouts = World(), RolloutLogger(every_n_validations=3, write_files=False)
    trainer = fit(tmp_path, rollouts, module=module, max_epochs=2)
    assert module.batches == []
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trainer = quiet_trainer(
        tmp_path, RolloutLogger(every_n_validations=3, write_files=False), limit_val_batches=1.0, max_epochs=3
    )
    trainer.fit(module, loader(), loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert module.batches


def test_the_start_is_shown_before_the_first_step_and_does_not_count(tmp_path: Path) -> None:
    class Starting(World):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []

        def on_train_batch_start(self, *batch: Any) -> None:
            self.seen.append(len(self.batches))

    module = Starting()
    fit(tmp_path, RolloutLogger(at_start=True, every_n_validations=2), module=module, max_epochs=2)
    at_start = module.seen[0]
    assert at_start == len(module.batches) / 2 > 0
    halves = module.batches[:at_start], module.batches[at_start:]
    assert all(torch.equal(a["video"], b["video"]) for a, b in zip(*halves, strict=True))
    folders = sorted(path.name for path in tmp_path.rglob("step_*"))
    assert folders == ["step_00000000", f"step_{SHOWN_AT[1]:08d}"]


def test_what_does_not_fit_into_the_time_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, module = TensorBoardLogger(tmp_path), World()
    # A clock that goes on by ten seconds for every video.
    clock = SimpleNamespace(monotonic=lambda: 10.0 * sum(len(batch["video"]) for batch in module.batches))
    monkeypatch.setattr(rollout_logger, "time", clock)
    with pytest.warns(UserWarning, match="RolloutLogger: a video takes 10.0 seconds, so that not all of them fit"):
        # Panels 1 and 2 take six videos, panel 3 would take six more at once.
        fit(tmp_path, RolloutLogger(time_budget=115.0), module=module, logger=logger)
    assert sorted(events(logger).Tags()["images"]) == TAGS[:4]
    assert sum(len(batch["video"]) for batch in module.batches) == 6


def test_videos_are_cut_and_shrunk(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    fit(tmp_path, Magnifier(), RolloutLogger(num_samples=1, max_frames=4, max_side=200), logger=logger)
    frames = frames_of(events(logger).Images(TAGS[0])[0].encoded_image_string)
    assert len(frames) == 4
    # 220 x 264 in squares of two pixels, then enlarged to at least 240.
    assert frames.shape[-2:] == (CAPTION_HEIGHT + 3 * 110, 2 * 3 * 132 + GAP)


class Magnifier(Callback):
    """Makes the first batch larger."""

    def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, *_: Any) -> None:
        batch["video"] = batch["video"].repeat_interleave(11, -1).repeat_interleave(11, -2)


def test_without_tensorboard_there_are_files_and_a_warning(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    with pytest.warns(UserWarning, match="CSVLogger has no experiment"):
        fit(tmp_path, RolloutLogger(num_samples=1), logger=logger)
    assert len(list(Path(logger.log_dir).glob("rollouts/step_*/*"))) == 4
    fit(tmp_path / "none", RolloutLogger(num_samples=1))
    assert len(list((tmp_path / "none").glob("rollouts/step_*/*"))) == 4


@pytest.mark.parametrize("options", [{"write_files": False}, {"fast_dev_run": True}], ids=lambda o: next(iter(o)))
def test_files_can_be_left_out(tmp_path: Path, options: dict[str, bool]) -> None:
    module = World()
    write_files = options.pop("write_files", True)
    fit(tmp_path, RolloutLogger(write_files=write_files), module=module, **options)
    assert module.batches and list(tmp_path.iterdir()) == []


def test_classes_are_tried_as_they_are(tmp_path: Path) -> None:
    logger, module = TensorBoardLogger(tmp_path), World()
    fit(tmp_path, RolloutLogger(num_samples=1), module=module, classes=True, logger=logger)
    assert sorted(events(logger).Tags()["images"]) == [TAGS[0], TAGS[2], TAGS[4]]
    script = next(
        batch["action"] for batch in module.batches if batch["action"] is not None and len(batch["action"]) > 1
    )
    assert script.dtype == torch.int64
    assert script[:, :, 0].tolist() == [[c] * ROWS for c in (0, 1, 2)] + [[0, 0, 0, 0, 1, 1, 1, 1]]


def test_default_actions_follow_from_the_kind_of_action() -> None:
    assert default_actions(torch.zeros(1, 2, 3)) == {
        "+x": [1, 0, 0],
        "-x": [-1, 0, 0],
        "+y": [0, 1, 0],
        "-y": [0, -1, 0],
    }
    assert list(default_actions(torch.zeros(1, 2, 1))) == ["+x", "-x"]
    assert list(default_actions(torch.tensor([[[5], [2]], [[2], [2]]]))) == ["(2)", "(5)"]


def test_a_single_action_alternates_with_nothing() -> None:
    script = probe_script(torch.zeros(1, 3, 2), {"go": [1.0, 1.0]}, 2)
    assert list(script) == ["hold", "go"]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    class Wrong(World):
        def generate(self, batch: dict[str, Any]) -> Tensor:
            return torch.zeros(1, T, H, W)

    with pytest.raises(MisconfigurationException, match="RolloutLogger needs a method generate.*BoringModel has none"):
        quiet_trainer(tmp_path, RolloutLogger()).fit(BoringModel())
    with pytest.raises(MisconfigurationException, match="RolloutLogger expects generate"):
        fit(tmp_path, RolloutLogger(), module=Wrong())
    with pytest.raises(MisconfigurationException, match=r"RolloutLogger\(actions=...\) has rows of 1 columns"):
        fit(tmp_path, RolloutLogger(actions={"go": [1.0]}))


def test_other_stages_do_not_ask_for_anything(tmp_path: Path) -> None:
    quiet_trainer(tmp_path, RolloutLogger()).test(BoringModel(), verbose=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_validations": 0}, "every_n_validations must be at least 1"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"actions": {}}, "actions must be rows of one width"),
        ({"actions": {"a": [1.0], "b": [1.0, 2.0]}}, "actions must be rows of one width"),
        ({"actions": {"a": []}}, "actions must be rows of one width"),
        ({"scales": []}, "scales must be finite numbers"),
        ({"max_side": 100}, "max_side must be at least 200"),
        ({"time_budget": 0}, "time_budget must be above 0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutLogger(**arguments)
