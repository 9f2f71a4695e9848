"""ActionScan on a small module of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_action.callbacks import ActionScan
from lightning_action.callbacks.action_scan import ScanLayout, strip_frames
from lightning_action.callbacks.support.pictures import from_image

B, T, H, W = 3, 9, 12, 20
FRAME_SIZE = (72, 120)  # enlarged
ROWS, COLUMNS = T - 1, 2
ACTIONS = {"right": [1.0, 0.0], "down": [0.0, 1.0], "left": [-1.0, 0.0]}
SCALES = [0.0, 0.25, 0.5, 1.0]
STRIP = 5


class Mover(LightningModule):
    """Moves the first frame of the batch by the actions, or does not care about them."""

    def __init__(self, obeys: bool = True) -> None:
        super().__init__()
        self.obeys = obeys
        self.batches: list[dict[str, Any]] = []

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        pass

    def generate(self, batch: dict[str, Any]) -> Tensor:
        self.batches.append(batch)
        moved = (8 * batch["action"].cumsum(1) / ROWS).round().int().tolist()
        videos = batch["video"][:, :1].repeat(1, T, 1, 1, 1)
        for video, places in zip(videos, moved, strict=True):
            for frame, (x, y) in zip(video[1:], places, strict=True):
                frame.copy_(frame.roll((y, x), dims=(-2, -1)) if self.obeys else frame)
        return videos


def sample(index: int) -> dict[str, Any]:
    torch.manual_seed(index)
    return {
        "video": torch.rand(T, 3, H, W),
        "action": torch.randn(ROWS, COLUMNS),
        "sample_id": 70 + index,
        "prompt": f"sample {index}",
    }


def predict(
    tmp_path: Path,
    scan: Callback,
    module: LightningModule | None = None,
    samples: list[Any] | None = None,
    **kwargs: Any,
) -> None:
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        callbacks=[scan],
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )
    loader = DataLoader(samples or [sample(index) for index in range(5)], batch_size=B)
    trainer.predict(module or Mover(), loader, return_predictions=False)


def layout_of(picture: Tensor, scan: ActionScan) -> ScanLayout:
    """Where the cells are; the place that the names of the rows take is the rest of the width."""
    assert scan.actions and scan.scales
    layout = ScanLayout(len(scan.actions), len(scan.scales), STRIP, *FRAME_SIZE, left=0)
    return layout._replace(left=picture.shape[-1] - layout.size[0])


def cells_of(picture: Tensor, scan: ActionScan) -> list[list[Tensor]]:
    """The film strip in every cell, `[rows][columns]`."""
    layout = layout_of(picture, scan)
    corners = [[layout.corner(row, column) for column in range(layout.num_columns)] for row in range(layout.num_rows)]
    height, width = layout.frame_height, layout.cell_width
    return [[picture[:, top : top + height, left : left + width] for left, top in row] for row in corners]


@pytest.mark.parametrize("obeys", [True, False])
def test_cells_differ_where_the_action_makes_a_difference(tmp_path: Path, obeys: bool) -> None:
    scan = ActionScan(ACTIONS, SCALES)
    predict(tmp_path, scan, Mover(obeys))
    picture = from_image(Image.open(tmp_path / "action_scan.png"))
    cells = cells_of(picture, scan)
    distinct = {cell.numpy().tobytes() for row in cells for cell in row}
    # Without any action, all rows are alike.
    assert len(distinct) == (1 + len(ACTIONS) * (len(SCALES) - 1) if obeys else 1)
    assert all(torch.equal(cells[0][0], row[0]) for row in cells)


def test_the_picture_has_room_for_everything(tmp_path: Path) -> None:
    scan = ActionScan(ACTIONS, SCALES, output=str(tmp_path / "new" / "scan.png"))
    predict(tmp_path, scan)
    picture = from_image(Image.open(tmp_path / "new" / "scan.png"))
    layout = layout_of(picture, scan)
    assert picture.shape[-2] == layout.size[1]
    assert 40 < layout.left < 300
    labels = picture[:, :, : layout.left]
    for row in range(len(ACTIONS)):
        top = layout.corner(row, 0)[1]
        assert (labels[:, top : top + layout.frame_height] < 100).any()
    header = picture[:, : layout.corner(0, 0)[1]]
    for column in range(len(SCALES)):
        left = layout.corner(0, column)[0]
        assert (header[:, 70:, left : left + layout.cell_width] < 100).any()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["scan.png"]


def test_a_strip_shows_the_start_and_later_frames(tmp_path: Path) -> None:
    scan = ActionScan({"right": [1.0, 0.0]}, [1.0])
    predict(tmp_path, scan)
    picture = from_image(Image.open(tmp_path / "action_scan.png"))
    # A single cell is narrower than the title, so it does not end where the picture does.
    width = layout_of(picture, scan)._replace(left=0)
    start = sample(0)["video"][0]
    white_columns = (picture == 255).all(0)[width.corner(0, 0)[1] :].all(0)
    left = next(x for x in range(200) if not white_columns[x : x + FRAME_SIZE[1]].any())
    for index, moved in enumerate([0, 2, 4, 6, 8]):
        x, y = width._replace(left=left).corner(0, 0, index)
        frame = picture[:, y : y + FRAME_SIZE[0] : 6, x : x + FRAME_SIZE[1] : 6]
        assert torch.equal(frame, (start.roll(moved, dims=-1) * 255).round().to(torch.uint8))


def test_one_batch_holds_the_first_sample_with_every_action_at_every_scale(tmp_path: Path) -> None:
    module = Mover()
    predict(tmp_path, ActionScan(ACTIONS, SCALES), module)
    (batch,) = module.batches
    count = len(ACTIONS) * len(SCALES)
    first = sample(0)
    assert torch.equal(batch["video"], first["video"].expand(count, -1, -1, -1, -1))
    assert batch["sample_id"].tolist() == [70] * count
    assert batch["prompt"] == ["sample 0"] * count
    assert batch["action"].shape == (count, ROWS, COLUMNS)
    assert batch["action"].dtype == torch.float32
    expected = [[scale * value for value in row] for row in ACTIONS.values() for scale in SCALES]
    assert torch.equal(batch["action"], torch.tensor(expected)[:, None].expand(-1, ROWS, -1))


class Says(Mover):
    """Says what its actions are, once the prediction begins."""

    def __init__(self, scalable: bool) -> None:
        super().__init__()
        self.scalable = scalable

    def probe_actions(self, strength: float) -> tuple[dict[str, list[float]], bool]:
        assert self.trainer.predicting
        return {"right": [strength, 0.0], "down": [0.0, strength]}, self.scalable


@pytest.mark.parametrize(("scalable", "scales"), [(True, [0.0, 0.5, 1.0, 2.0]), (False, [1.0])])
def test_the_module_says_which_actions_there_are(tmp_path: Path, scalable: bool, scales: list[float]) -> None:
    module = Says(scalable)
    predict(tmp_path, ActionScan(strength=0.25), module)
    (batch,) = module.batches
    expected = [[scale * value for value in row] for row in ([0.25, 0], [0, 0.25]) for scale in scales]
    assert batch["action"][:, 0].tolist() == expected
    predict(tmp_path / "given", ActionScan({"right": [0.25, 0], "down": [0, 0.25]}, scales), Mover())
    drawn = (folder / "action_scan.png" for folder in (tmp_path, tmp_path / "given"))
    assert len({path.read_bytes() for path in drawn}) == 1


class SaysMuch(Mover):
    def probe_actions(self, strength: float) -> tuple[dict[str, list[float]], bool]:
        return {f"{number}": [number / 40, 0.0] for number in range(40)}, False


def test_of_many_actions_the_first_are_shown(tmp_path: Path) -> None:
    module = SaysMuch()
    predict(tmp_path, ActionScan(), module)
    shown = torch.cat([batch["action"][:, 0, 0] for batch in module.batches])
    torch.testing.assert_close(shown, torch.arange(32) / 40)


def test_a_module_that_does_not_say_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="ActionScan without actions needs a method probe_actions"):
        predict(tmp_path, ActionScan(), Refused())


def test_many_videos_are_generated_in_several_batches(tmp_path: Path) -> None:
    module = Mover()
    for folder, count in (("one", 16), ("several", 5)):
        predict(tmp_path / folder, ActionScan(ACTIONS, SCALES, num_videos_at_once=count), module)
    assert [len(batch["action"]) for batch in module.batches] == [12, 5, 5, 2]
    pictures = [(tmp_path / folder / "action_scan.png").read_bytes() for folder in ("one", "several")]
    assert pictures[0] == pictures[1]


def test_generation_runs_in_the_precision_of_the_prediction(tmp_path: Path) -> None:
    autocast = []

    class Watched(Mover):
        def generate(self, batch: dict[str, Any]) -> Tensor:
            autocast.append(torch.is_autocast_enabled("cpu"))
            return super().generate(batch)

    predict(tmp_path, ActionScan(ACTIONS, SCALES), Watched(), precision="bf16-mixed")
    assert autocast == [True]


def test_what_does_not_belong_to_samples_is_handed_on(tmp_path: Path) -> None:
    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = torch.utils.data.default_collate(samples)
        return batch | {"fps": 8, "dt": torch.tensor(0.125), "name": "test"}

    class WithLoader(Mover):
        def predict_dataloader(self) -> DataLoader[Any]:
            return DataLoader([sample(index) for index in range(4)], batch_size=B, collate_fn=collate)  # type: ignore[arg-type]

    module = WithLoader()
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, callbacks=[ActionScan(ACTIONS)])
    trainer.predict(module, return_predictions=False)
    (batch,) = module.batches
    assert (batch["fps"], batch["dt"].item(), batch["name"]) == (8, 0.125, "test")


def test_a_module_that_cannot_generate_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="ActionScan needs a method generate.*BoringModel has none"):
        predict(tmp_path, ActionScan(ACTIONS), BoringModel())


def test_other_stages_do_not_ask_for_anything(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path / "new", logger=False)
    ActionScan(ACTIONS).setup(trainer, BoringModel(), stage="fit")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    module = Mover()
    with pytest.raises(MisconfigurationException, match=r"ActionScan\(output=.*can be written to"):
        predict(tmp_path, ActionScan(ACTIONS, output=str(tmp_path / "file" / "scan.png")), module)
    assert module.batches == []


class Refused(Mover):
    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Accepts everything: what the module itself refuses is not the callback's to explain."""

    def generate(self, batch: dict[str, Any]) -> Tensor:
        raise AssertionError("the scan began")


BATCHES: dict[str, tuple[Any, str]] = {
    "no action": ({"video": torch.rand(3)}, r"dicts with 'action' \[B, rows, columns\], got \['video'\]"),
    "no dict": (torch.rand(3), "got Tensor"),
    "an action without rows": ({"action": torch.rand(2)}, r"got \['action'\]"),
    "wider action": ({"action": torch.rand(ROWS, 7)}, "rows of 2 columns, and .* has 7: give each action 7 numbers"),
    "classes": ({"action": torch.zeros(ROWS, 2, dtype=torch.int64)}, "whole numbers .*int64"),
}


@pytest.mark.parametrize("case", BATCHES)
def test_batches_that_do_not_fit_are_refused_before_the_scan_begins(tmp_path: Path, case: str) -> None:
    item, message = BATCHES[case]
    with pytest.raises(MisconfigurationException, match=message):
        predict(tmp_path, ActionScan(ACTIONS), Refused(), samples=[item] * 2)


def test_classes_can_be_scanned_unscaled(tmp_path: Path) -> None:
    class Classes(Mover):
        def generate(self, batch: dict[str, Any]) -> Tensor:
            return batch["action"].float().mean((1, 2))[:, None, None, None, None].div(4).expand(-1, T, 3, H, W)

    samples = [{"action": torch.zeros(ROWS, 1, dtype=torch.int64)}] * 2
    predict(tmp_path, ActionScan({"jump": [3], "wait": [0]}, scales=[1]), Classes(), samples=samples)
    assert (tmp_path / "action_scan.png").exists()


@pytest.mark.parametrize(
    ("videos", "message"),
    [(torch.rand(4, T, 3, H, W), r"return 12 videos .*got \(4, 9, 3, 12, 20\)"), ([1, 2], "got list")],
)
def test_generated_videos_that_do_not_fit_are_refused(tmp_path: Path, videos: Any, message: str) -> None:
    class Wrong(Mover):
        def generate(self, batch: dict[str, Any]) -> Any:
            return videos

    with pytest.raises(MisconfigurationException, match=message):
        predict(tmp_path, ActionScan(ACTIONS), Wrong())
    assert not (tmp_path / "action_scan.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"actions": {}}, "actions must be rows of one width"),
        ({"actions": {"right": [1.0], "left": [1.0, 2.0]}}, "actions must be rows of one width"),
        ({"actions": {"nothing": []}}, "actions must be rows of one width"),
        ({"actions": ACTIONS, "scales": []}, "scales must be finite numbers"),
        ({"actions": ACTIONS, "scales": [float("nan")]}, "scales must be finite numbers"),
        ({"actions": ACTIONS, "num_strip_frames": 0}, "num_strip_frames must be at least 1, got 0"),
        ({"num_videos_at_once": 0}, "num_videos_at_once must be at least 1, got 0"),
        ({"strength": 0.0}, "strength must be above 0 and at most 1, got 0.0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionScan(**arguments)


@pytest.mark.parametrize(
    ("num_frames", "num_later", "expected"),
    [(9, 4, [0, 2, 4, 6, 8]), (81, 4, [0, 20, 40, 60, 80]), (6, 2, [0, 2, 5]), (3, 4, [0, 1, 2]), (1, 4, [0])],
)
def test_strips_end_with_the_last_frame(num_frames: int, num_later: int, expected: list[int]) -> None:
    assert strip_frames(num_frames, num_later) == expected


def test_another_sample_can_be_scanned(tmp_path: Path) -> None:
    pictures = []
    for sample in (0, 1, 9):
        path = tmp_path / f"{sample}.png"
        samples = [{"action": torch.zeros(ROWS, 2), "level": torch.tensor(level)} for level in (0.2, 0.8)]
        predict(tmp_path, ActionScan(ACTIONS, output=str(path), sample=sample), Level(), samples=samples)
        pictures.append(path.read_bytes())
    assert pictures[0] != pictures[1] and pictures[1] == pictures[2], "the last where there are fewer"
    with pytest.raises(ValueError, match="sample must be at least 0"):
        ActionScan(ACTIONS, sample=-1)


class Level(Mover):
    def generate(self, batch: dict[str, Any]) -> Tensor:
        return batch["level"].float()[:, None, None, None, None].expand(-1, T, 3, H, W)
