"""GradientSums against direct computation, for kinds of gradients that few modules have at once."""

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_action.callbacks.support.gradient_sums import GradientSums, reduce

NAN, INF = float("nan"), float("inf")


def parameter(gradient: Tensor | None, value: float = 0.0) -> nn.Parameter:
    made = nn.Parameter(torch.full((2, 3), value, dtype=torch.float32 if gradient is None else gradient.dtype))
    made.grad = gradient
    return made


def figures(parameters: list[nn.Parameter], rows: list[int]) -> dict[str, float]:
    sums = GradientSums(parameters)
    sums.add_gradients()
    reduce([sums])
    return sums.figures(rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_is_added_up_in_float32_at_least(dtype: torch.dtype) -> None:
    gradient = torch.tensor([[100.0, -200.0, 0.0], [0.5, 300.0, 0.0]]).to(dtype)
    assert figures([parameter(gradient)], [0]) == pytest.approx(
        {
            "norm": math.sqrt(100**2 + 200**2 + 0.5**2 + 300**2),
            "max": 300.0,
            "mean": 600.5 / 6,
            "zero_share": 2 / 6,
            "nonfinite_share": 0.0,
        },
        rel=1e-6,
    )


def test_a_gradient_that_is_missing_counts_nowhere() -> None:
    both = [parameter(None), parameter(torch.ones(2, 3))]
    assert figures(both, [0]) == {}
    assert figures(both, [0, 1]) == figures(both, [1])


def test_values_that_are_not_finite_are_counted_and_not_hidden() -> None:
    shown = figures([parameter(torch.tensor([[NAN, INF, -INF], [1.0, 0.0, 2.0]]))], [0])
    assert shown["nonfinite_share"] == 3 / 6 and shown["zero_share"] == 1 / 6
    assert math.isnan(shown["norm"]) and math.isnan(shown["max"])


def test_updates_and_products_of_parameters_that_come_and_go() -> None:
    one, new, frozen = parameter(torch.ones(2, 3), 2.0), parameter(torch.ones(2, 3), 4.0), parameter(None, 9.0)
    sums = GradientSums([one, new, frozen])
    sums.add_gradients()
    sums.add_products({one: torch.full((2, 3), 3.0)})
    before = {p: p.detach().clone() for p in (one, new)}
    with torch.no_grad():
        one += 1.0
        frozen += 1.0
    sums.add_updates(before)
    reduce([sums])
    assert sums.figures([0])["cosine"] == pytest.approx(1.0)
    # Of the other, the gradient before counts as zero.
    assert sums.figures([0, 1])["cosine"] == pytest.approx(18 / math.sqrt(12 * 54))
    assert sums.figures([0])["update_to_weight"] == pytest.approx(1 / 2)
    assert sums.figures([0, 1, 2])["update_to_weight"] == pytest.approx(math.sqrt(6 / (24 + 96)))
    assert sums.figures([2]) == {}


def test_what_is_zero_has_no_ratio() -> None:
    sums = GradientSums([parameter(torch.zeros(2, 3))])
    sums.add_gradients()
    sums.add_products({sums.parameters[0]: torch.ones(2, 3)})
    sums.add_updates({sums.parameters[0]: torch.zeros(2, 3)})
    reduce([sums])
    assert sums.figures([0]).keys() == {"norm", "max", "mean", "zero_share", "nonfinite_share"}


def test_updates_of_narrow_weights_are_not_rounded_to_their_type() -> None:
    weights = parameter(torch.ones(2, 3, dtype=torch.bfloat16))
    sums = GradientSums([weights])
    sums.add_gradients()
    before = torch.tensor([[-1.0078125, 0.00390625, 3.0], [-0.01171875, 5.0, 0.0]], dtype=torch.bfloat16)
    with torch.no_grad():
        weights.fill_(3.0)
    sums.add_updates({weights: before})
    reduce([sums])
    exact = (weights.detach().double() - before.double()).norm() / before.double().norm()
    assert sums.figures([0])["update_to_weight"] == pytest.approx(exact.item(), rel=1e-6)
