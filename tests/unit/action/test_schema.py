"""Which action rows reach which latent frame, and what becomes of their columns."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.action.schema import ActionPart, ActionSchema, Alignment, Combine

ALIGNMENTS: tuple[Alignment, ...] = ("transition", "state", "per_latent")
COMBINES: tuple[Combine, ...] = ("concat", "mean", "sum", "last")

# Row numbers that make up each latent frame; None is "no row", encoded as zero.
ROWS_OF_LATENTS: dict[tuple[Alignment, int], list[list[int | None]]] = {
    ("transition", 4): [[None] * 4, [0, 1, 2, 3], [4, 5, 6, 7]],
    ("state", 4): [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]],
    ("per_latent", 4): [[0], [1], [2]],
    ("transition", 3): [[None] * 3, [0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]],
    ("state", 3): [[0, 0, 0], [1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]],
    ("per_latent", 3): [[0], [1], [2], [3], [4]],
}


def schema_of(alignment: Alignment, combine: Combine, ratio: int, columns: int = 2) -> ActionSchema:
    """Bounds -1 and 1, so that a value is encoded as itself."""
    return ActionSchema([ActionPart("move", "continuous", columns)], alignment, combine, ratio)


def unique_rows(num_rows: int, columns: int = 2, batch_size: int = 3) -> Tensor:
    """Every value occurs once, and is within the bounds: (1000 (sample + 1) + 100 column + 1 + row) / 4096."""
    sample = 1000 * (torch.arange(batch_size, dtype=torch.float64) + 1)
    column = 100 * torch.arange(columns, dtype=torch.float64)
    row = 1 + torch.arange(num_rows, dtype=torch.float64)
    return (sample[:, None, None] + row[:, None] + column) / 4096


def expected_vectors(rows: Tensor, table: list[list[int | None]], combine: Combine) -> Tensor:
    """The table, spelled out with loops."""
    samples = []
    for sample in rows:
        latents = []
        for numbers in table:
            parts = [torch.zeros_like(rows[0, 0]) if number is None else sample[number] for number in numbers]
            if combine == "concat":
                latents.append(torch.cat(parts))
            elif combine == "last":
                latents.append(parts[-1])
            else:
                total = torch.stack(parts).sum(0)
                latents.append(total / len(parts) if combine == "mean" else total)
        samples.append(torch.stack(latents))
    return torch.stack(samples)


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize(("alignment", "ratio"), list(ROWS_OF_LATENTS))
def test_rows_reach_the_latent_frames_of_the_table(alignment: Alignment, ratio: int, combine: Combine) -> None:
    table = ROWS_OF_LATENTS[alignment, ratio]
    schema = schema_of(alignment, combine, ratio)
    rows = unique_rows(schema.num_rows(len(table)))

    vectors, present = schema.encode(rows, len(table))

    assert torch.equal(vectors, expected_vectors(rows, table, combine))
    assert vectors.shape == (3, len(table), schema.action_dim)
    assert present.dtype == torch.bool
    assert present.tolist() == [[alignment != "transition"] + [True] * (len(table) - 1)] * 3
    used = {number for numbers in table for number in numbers if number is not None}
    assert used == set(range(rows.shape[1]))


@pytest.mark.parametrize(("alignment", "ratio"), list(ROWS_OF_LATENTS))
def test_rows_of_a_latent_frame_are_those_of_the_table(alignment: Alignment, ratio: int) -> None:
    schema = schema_of(alignment, "concat", ratio)
    for latent, numbers in enumerate(ROWS_OF_LATENTS[alignment, ratio]):
        assert list(schema.rows_of(latent)) == sorted({number for number in numbers if number is not None})


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("ratio", [1, 3, 4])
def test_num_rows_and_num_latents_are_inverse(alignment: Alignment, ratio: int) -> None:
    schema = schema_of(alignment, "concat", ratio)
    counts = [schema.num_rows(num_latents) for num_latents in range(1, 9)]
    assert [schema.num_latents(count) for count in counts] == list(range(1, 9))
    for count in set(range(counts[-1])) - set(counts):
        with pytest.raises(ValueError, match=f"^{count} action rows fit no whole number"):
            schema.num_latents(count)


def test_row_counts_by_hand() -> None:
    assert [schema_of(alignment, "concat", 4).num_rows(9) for alignment in ALIGNMENTS] == [32, 33, 9]
    assert [schema_of(alignment, "concat", 5).num_rows(3) for alignment in ALIGNMENTS] == [10, 11, 3]


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize(("alignment", "ratio"), list(ROWS_OF_LATENTS))
def test_no_row_reaches_the_past(alignment: Alignment, ratio: int, combine: Combine) -> None:
    table = ROWS_OF_LATENTS[alignment, ratio]
    schema = schema_of(alignment, combine, ratio)
    rows = torch.randn(2, schema.num_rows(len(table)), 2)
    before, _ = schema.encode(rows, len(table))
    for row in range(rows.shape[1]):
        changed = rows.clone()
        changed[:, row] += 1
        after, _ = schema.encode(changed, len(table))
        different = (after != before).any(dim=2).all(dim=0).tolist()
        # "last" sees only the last row of a latent frame.
        holders = [row in (numbers[-1:] if combine == "last" else numbers) for numbers in table]
        assert different == holders
        same = torch.tensor([not holder for holder in holders])
        assert torch.equal(after[:, same], before[:, same])


@pytest.mark.parametrize(
    ("alignment", "num_rows", "first"),
    [("transition", 0, [0.0, 0.0, 0.0]), ("state", 1, [0.75] * 3), ("per_latent", 1, [0.75])],
)
def test_one_latent_frame(alignment: Alignment, num_rows: int, first: list[float]) -> None:
    schema = schema_of(alignment, "concat", 3, columns=1)
    assert (schema.num_rows(1), schema.num_latents(num_rows)) == (num_rows, 1)
    vectors, present = schema.encode(torch.full((2, num_rows, 1), 0.75), 1)
    assert vectors.tolist() == [[first], [first]]
    assert present.tolist() == [[alignment != "transition"]] * 2


@pytest.mark.parametrize("combine", COMBINES)
def test_one_latent_frame_without_rows_for_every_kind_and_combine(combine: Combine) -> None:
    schema = ActionSchema([ActionPart("a", "discrete", 3), ActionPart("b", "multi_hot", 2)], "transition", combine, 4)
    vectors, present = schema.encode(torch.zeros(2, 0, 3), 1)
    assert torch.equal(vectors, torch.zeros(2, 1, schema.action_dim))
    assert present.tolist() == [[False], [False]]


def test_continuous_columns_have_their_own_bounds() -> None:
    part = ActionPart("move", "continuous", 3, low=[0.0, -4.0, 10.0], high=[2.0, 4.0, 20.0])
    raw = torch.tensor([[0.0, -4.0, 10.0], [1.0, 0.0, 15.0], [2.0, 4.0, 20.0], [3.0, 2.0, 12.5]])
    expected = [[-1.0, -1.0, -1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [2.0, 0.5, -0.5]]
    assert part.encode(raw).tolist() == expected


def test_one_bound_serves_all_columns() -> None:
    part = ActionPart("move", "continuous", 2, low=-2.0, high=[2.0, 6.0])
    assert part.encode(torch.tensor([0.0, 0.0])).tolist() == [0.0, -0.5]


def test_discrete_is_one_hot() -> None:
    part = ActionPart("key", "discrete", 3)
    assert part.num_columns == 1
    assert part.encode(torch.tensor([[2.0], [0.0]])).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_multi_hot_stays_as_it_is() -> None:
    part = ActionPart("keys", "multi_hot", 3)
    raw = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert part.num_columns == 3
    assert torch.equal(part.encode(raw), raw)


def test_parts_stand_side_by_side_in_order() -> None:
    schema = ActionSchema(
        [
            ActionPart("camera", "continuous", 2, low=0.0, high=10.0),
            ActionPart("key", "discrete", 4),
            ActionPart("buttons", "multi_hot", 3),
        ],
        "per_latent",
    )
    assert (schema.num_columns, schema.action_dim) == (6, 9)
    vectors, _ = schema.encode(torch.tensor([[[10.0, 0.0, 2.0, 0.0, 1.0, 1.0]]]), 1)
    assert vectors.flatten().tolist() == [1, -1, 0, 0, 1, 0, 0, 1, 1]


def test_concat_keeps_the_columns_of_a_row_together() -> None:
    schema = ActionSchema([ActionPart("key", "discrete", 3), ActionPart("x", "continuous", 1)], "transition")
    rows = torch.tensor([[[0, 0.125], [2, 0.25], [1, 0.5], [2, 0.75]]])
    vectors, _ = schema.encode(rows, 2)
    assert vectors[0, 1].tolist() == [1, 0, 0, 0.125, 0, 0, 1, 0.25, 0, 1, 0, 0.5, 0, 0, 1, 0.75]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_vectors_have_the_type_of_the_rows(dtype: torch.dtype) -> None:
    schema = ActionSchema([ActionPart("x", "continuous", 1), ActionPart("key", "discrete", 3)], "state", "mean", 2)
    assert schema.encode(torch.zeros(2, 5, 2, dtype=dtype), 3)[0].dtype == dtype


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_whole_numbers_may_come_as_integers(dtype: torch.dtype, combine: Combine) -> None:
    # Bounds between whole numbers would be cut off by integer arithmetic.
    parts = [ActionPart("key", "discrete", 3), ActionPart("x", "continuous", 1, low=-0.5, high=1.5)]
    schema = ActionSchema(parts, "transition", combine, 2)
    rows = torch.tensor([[[0, 0], [2, 1], [1, 1], [2, 0]]])
    vectors, _ = schema.encode(rows.to(dtype), 3)
    assert torch.equal(vectors, schema.encode(rows.float(), 3)[0])
    assert vectors.dtype == torch.float32
    assert bool((vectors[:, 1:] != 0).any())


@pytest.mark.parametrize(
    ("part", "bad", "message"),
    [
        (ActionPart("key", "discrete", 3), 3.0, "discrete action part 'key' takes whole numbers from 0 to 2.*3"),
        (ActionPart("key", "discrete", 3), -1.0, "from 0 to 2, got values from -1"),
        (ActionPart("key", "discrete", 3), 0.5, "whole numbers from 0 to 2"),
        (ActionPart("jump", "multi_hot", 1), 2.0, "multi_hot action part 'jump' takes whole numbers from 0 to 1.*2"),
        (ActionPart("jump", "multi_hot", 1), 0.5, "whole numbers from 0 to 1"),
    ],
)
def test_values_out_of_range_are_refused(part: ActionPart, bad: float, message: str) -> None:
    raw = torch.zeros(2, 3, 1)
    part.encode(raw)
    raw[1, 2] = bad
    with pytest.raises(ValueError, match=message):
        part.encode(raw)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_with_their_place(bad: float) -> None:
    schema = schema_of("state", "mean", 3)
    rows = torch.zeros(2, 7, 2)
    schema.encode(rows, 3)
    rows[1, 5, 0] = bad
    with pytest.raises(ValueError, match=r"not finite, first at \[sample, row, column\] = \[1, 5, 0\]"):
        schema.encode(rows, 3)


def test_a_wrong_width_is_refused_with_both_shapes() -> None:
    schema = ActionSchema([ActionPart("camera", "continuous", 2), ActionPart("key", "discrete", 5)])
    with pytest.raises(ValueError, match=r"must be \[B, 8, 3\] \(rows, columns of camera, key\), got \[2, 8, 4\]"):
        schema.encode(torch.zeros(2, 8, 4), 3)


@pytest.mark.parametrize("shape", [(8, 2), (1, 2, 8, 2)])
def test_a_wrong_number_of_axes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \[B, 8, 2\]"):
        schema_of("transition", "concat", 4).encode(torch.zeros(*shape), 3)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_rows_of_no_latent_frame_are_refused(alignment: Alignment) -> None:
    with pytest.raises(ValueError, match="actions for 0 latent frames must be"):
        schema_of(alignment, "concat", 4).encode(torch.zeros(1, 0, 2), 0)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_rows_for_another_alignment_are_refused_with_the_three_rules(alignment: Alignment) -> None:
    schema = schema_of(alignment, "concat", 4)
    own = schema.num_rows(3)
    rules = f"Rows for 3 latent frames: transition 8, state 9, per_latent 3; this schema says {alignment}"
    assert own in (8, 9, 3)
    for num_rows in {8, 9, 3, 7} - {own}:
        with pytest.raises(ValueError, match=rf"must be \[B, {own}, 2\].*got \[1, {num_rows}, 2\]. {rules}"):
            schema.encode(torch.zeros(1, num_rows, 2), 3)


def test_rows_that_fit_no_number_of_latents_are_refused_with_the_three_rules() -> None:
    message = r"7 action rows .* transition 5 \(L - 1\), state 5 \(L - 1\) \+ 1, per_latent L; .* says state"
    with pytest.raises(ValueError, match=message):
        schema_of("state", "concat", 5).num_latents(7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size of at least 1, got 0"),
        ({"low": 1.0, "high": 1.0}, "needs low < high in every column"),
        ({"low": [0.0, 3.0], "high": [1.0, 2.0]}, "needs low < high in every column"),
        ({"low": float("nan")}, "needs low < high in every column"),
        ({"low": [0.0, 0.0, 0.0]}, "needs one bound or 2"),
        ({"kind": "contnuous"}, "is one of continuous, discrete, multi_hot, got 'contnuous'"),
    ],
)
def test_a_part_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionPart("move", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alignment": "states"}, "alignment is one of transition, state, per_latent, got 'states'"),
        ({"combine": "max"}, "combine is one of concat, mean, sum, last, got 'max'"),
        ({"temporal_compression_ratio": 0}, "temporal_compression_ratio >= 1, got 1 parts and 0"),
        ({"parts": []}, "at least one action part"),
    ],
)
def test_a_schema_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionSchema(**arguments)


def test_a_schema_survives_json() -> None:
    schema = ActionSchema(
        [
            ActionPart("camera", "continuous", 3, low=[0.0, -1.0, 2.0], high=[1.0, 1.5, 4.0]),
            ActionPart("key", "discrete", 7),
        ],
        "state",
        "mean",
        5,
    )
    restored = ActionSchema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert restored == schema
    assert restored != ActionSchema(schema.parts, "state", "mean", 4)
    rows = torch.cat([torch.rand(2, 11, 3), torch.full((2, 11, 1), 6.0)], dim=-1)
    assert torch.equal(restored.encode(rows, 3)[0], schema.encode(rows, 3)[0])


def test_an_unknown_key_is_refused() -> None:
    values = ActionSchema().to_dict()
    ActionSchema.from_dict(values)
    with pytest.raises(TypeError, match="alignement"):
        ActionSchema.from_dict({**values, "alignement": "state"})


def test_values_far_outside_the_range_are_warned_of() -> None:
    part = ActionPart("move", "continuous", 2, low=0.0, high=10.0)
    with pytest.warns(UserWarning, match=r"'move' goes from 0 to 30, far outside \[low, high\]"):
        part.encode(torch.tensor([[0.0, 30.0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        part.encode(torch.tensor([[-4.0, 14.0]]))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("size", [1, 3])
def test_frames_are_encoded_part_by_part_with_the_same_bits(alignment: Alignment, combine: Combine, size: int) -> None:
    schema = ActionSchema([ActionPart("stick", size=size), ActionPart("key", "discrete", 4)], alignment, combine)
    rows = torch.rand(2, schema.num_rows(9), size + 1)
    rows[..., -1] = (rows[..., -1] * 4).floor()
    whole, present = schema.encode(rows, 9)
    for length in (1, 3):
        parts = [range(start, start + length) for start in range(0, 9, length)]
        cut = [schema.rows_of_frames(part) for part in parts]
        assert [row for own in cut for row in own] == list(range(rows.shape[1]))
        made = [schema.encode_frames(rows[:, own.start : own.stop], part) for own, part in zip(cut, parts, strict=True)]
        assert torch.equal(torch.cat([vectors for vectors, _ in made], dim=1), whole)
        assert torch.equal(torch.cat([there for _, there in made], dim=1), present)
    with pytest.raises(ValueError, match="2 latent frames from 3 on must be"):
        schema.encode_frames(rows[:, :1], range(3, 5))
    with pytest.raises(ValueError, match="columns of stick, key"):
        schema.encode_rows(rows[..., 1:])


def test_probe_rows_do_one_thing_each() -> None:
    move = ActionSchema([ActionPart("move", labels=["x", "y"])])
    assert move.probe_rows(0.15) == {"+x": [0.15, 0], "-x": [-0.15, 0], "+y": [0, 0.15], "-y": [0, -0.15]}
    joints = ActionPart("joint", size=3, low=[-2.0, 0.0, 100.0], high=[4.0, 1.0, 200.0])
    schema = ActionSchema([ActionPart("tool", "discrete", 2), joints, ActionPart("key", "multi_hot", 2)])
    assert schema.probe_rows(0.5) == {
        "tool 0": [0, 0, 0, 150, 0, 0],
        "tool 1": [1, 0, 0, 150, 0, 0],
        "+joint_0": [0, 2, 0, 150, 0, 0],
        "-joint_0": [0, -1, 0, 150, 0, 0],
        "+joint_1": [0, 0, 0.5, 150, 0, 0],
        "+joint_2": [0, 0, 0, 175, 0, 0],
        "-joint_2": [0, 0, 0, 125, 0, 0],
        "key_0": [0, 0, 0, 150, 1, 0],
        "key_1": [0, 0, 0, 150, 0, 1],
    }
    for row in schema.probe_rows(1.0).values():
        schema.encode_rows(torch.tensor([[row]]))
    twice = ActionSchema([ActionPart(kind="discrete"), ActionPart(kind="discrete")]).probe_rows(0.5)
    assert twice == {"action 0": [0, 0], "action 1": [1, 0], "action 0 (2)": [0, 0], "action 1 (2)": [0, 1]}


def test_only_numbers_that_rest_at_zero_can_be_scaled() -> None:
    assert ActionSchema([ActionPart(low=[-1.0, 0.0])]).can_be_scaled
    for other in (ActionPart(low=0.5), ActionPart(kind="discrete"), ActionPart(kind="multi_hot")):
        assert not ActionSchema([ActionPart(), other]).can_be_scaled


def test_labels_are_words_alone() -> None:
    labelled = ActionSchema([ActionPart("turn", "discrete", 3, labels=["stay", "left", "right"])])
    assert list(labelled.probe_rows(0.5)) == ["stay", "left", "right"]
    plain = ActionSchema([ActionPart("turn", "discrete", 3)])
    read = ActionSchema.from_dict(labelled.to_dict())
    assert labelled == plain == read and read.parts[0].labels == ["stay", "left", "right"]
    assert "labels" not in plain.to_dict()["parts"][0], "files are as they were before there were labels"
    for wrong in (["left"], ["left", "left", "right"]):
        with pytest.raises(ValueError, match="'turn' needs 3 different labels, got"):
            ActionPart("turn", "discrete", 3, labels=wrong)


def test_columns_have_names() -> None:
    parts = [ActionPart("move", size=2), ActionPart("turn", "discrete", 3), ActionPart("key", "multi_hot", 2)]
    assert ActionSchema(parts).column_names == ["move_0", "move_1", "turn", "key_0", "key_1"]
