"""Sums over the gradient of each parameter, from which the statistics of any group of parameters follow."""

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from .collectives import largest_over_ranks, local, norm, num_copies, sum_over_ranks


class GradientSums:
    """What one step of an optimizer adds up for each of its P parameters.

    `sums` and `maxima` hold `[P]` each: on the device and of what this rank holds, until `reduce` makes them those of
    all ranks. A parameter without a gradient counts as one without values.

    Args:
        parameters: those of the optimizer, with a gradient or without.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.sums: dict[str, Tensor] = {}
        self.maxima: dict[str, Tensor] = {}

    def add_gradients(self, prefix: str = "") -> None:
        """Adds up the gradients as they are now, under names with a prefix."""
        gradients = [_values(parameter, parameter.grad) for parameter in self.parameters]
        names = [f"{prefix}{name}" for name in ("numel", "zeros", "nonfinite", "absolute", "squares")]
        self._add(names, (_sums_of(gradient) for gradient in gradients))
        self.maxima[f"{prefix}max"] = torch.stack([_largest(gradient) for gradient in gradients])

    def add_products(self, earlier: Mapping[nn.Parameter, Tensor]) -> None:
        """Adds up the products of the gradients with earlier ones, for their cosine."""
        names = ["products", "earlier_squares", "later_squares"]
        pairs = [(p, p.grad, earlier.get(p)) for p in self.parameters]
        known = [(p, None, None) if one is None or other is None else (p, one, other) for p, one, other in pairs]
        self._add(names, (_products(_values(p, one), _values(p, other)) for p, one, other in known))

    def add_updates(self, before: Mapping[nn.Parameter, Tensor]) -> None:
        """Adds up the squares of the weights before the step, and those of their change."""
        pairs = [(_values(p, p if p in before else None), _values(p, before.get(p))) for p in self.parameters]
        self._add(["update_squares", "weight_squares"], ([_square(new - old), _square(old)] for new, old in pairs))

    def figures(self, rows: Sequence[int]) -> dict[str, float]:
        """Statistics of a group of parameters, once its sums are reduced; none that is not defined."""
        sums = {name: column[rows].sum().item() for name, column in self.sums.items()}
        maxima = {name: column[rows].max().item() for name, column in self.maxima.items()}
        if not sums["numel"]:
            return {}
        figures = _describe(sums, maxima, "") | {
            "zero_share": sums["zeros"] / sums["numel"],
            "nonfinite_share": sums["nonfinite"] / sums["numel"],
        }
        if "clipped_numel" in sums:
            figures |= _describe(sums, maxima, "clipped_")
        if sums.get("weight_squares"):
            figures["update_to_weight"] = sqrt(sums["update_squares"] / sums["weight_squares"])
        if lengths := sums.get("earlier_squares", 0.0) * sums.get("later_squares", 0.0):
            figures["cosine"] = sums["products"] / sqrt(lengths)
        return figures

    def _add(self, names: list[str], rows: Iterable[list[Tensor]]) -> None:
        """Adds columns, of which every row holds what one parameter contributes."""
        shares = [torch.stack(row) / num_copies(p) for row, p in zip(rows, self.parameters, strict=True)]
        self.sums |= zip(names, torch.stack(shares).unbind(dim=1), strict=True)


def reduce(steps: Sequence[GradientSums]) -> None:
    """Makes the sums those of all ranks, as float64 on the CPU; waits for the device once."""
    sums = torch.cat([column for step in steps for column in step.sums.values()])
    maxima = torch.cat([column for step in steps for column in step.maxima.values()])
    whole = torch.cat([sum_over_ranks(sums), largest_over_ranks(maxima)]).cpu().double()
    columns = [(kind, name) for step in steps for kind in (step.sums,) for name in kind]
    columns += [(kind, name) for step in steps for kind in (step.maxima,) for name in kind]
    pieces = whole.split([len(kind[name]) for kind, name in columns])
    for (kind, name), piece in zip(columns, pieces, strict=True):
        kind[name] = piece


def count_nonfinite(parameters: Sequence[nn.Parameter]) -> list[float]:
    """Values of each parameter's gradient that are NaN or infinite, averaged over copies; waits for the device."""
    gradients = [_values(parameter, parameter.grad) for parameter in parameters]
    counts = torch.stack([gradient.isfinite().logical_not().sum() for gradient in gradients])
    of_copies = zip(sum_over_ranks(counts).tolist(), map(num_copies, parameters), strict=True)
    return [count / copies for count, copies in of_copies]


def _values(parameter: Tensor, values: Tensor | None) -> Tensor:
    return local(parameter).new_empty(0) if values is None else local(values)


def _square(values: Tensor) -> Tensor:
    return norm(values).square()


def _sums_of(gradient: Tensor) -> list[Tensor]:
    numel = torch.full((), gradient.numel(), dtype=torch.float32, device=gradient.device)
    counts = [gradient == 0, gradient.isfinite().logical_not()]
    return [
        numel,
        *(count.sum().float() for count in counts),
        norm(gradient, 1),
        _square(gradient),
    ]


def _products(one: Tensor, other: Tensor) -> list[Tensor]:
    return [(one.float() * other.float()).sum(), _square(other), _square(one)]


def _largest(gradient: Tensor) -> Tensor:
    # Shards may be empty, and those have no largest value.
    return gradient.abs().amax().float() if gradient.numel() else gradient.new_zeros((), dtype=torch.float32)


def _describe(sums: Mapping[str, float], maxima: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {
        f"{prefix}norm": sqrt(sums[f"{prefix}squares"]),
        f"{prefix}max": maxima[f"{prefix}max"],
        f"{prefix}mean": sums[f"{prefix}absolute"] / sums[f"{prefix}numel"],
    }
