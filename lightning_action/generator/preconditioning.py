"""Part of a velocity that the noisy latents tell by themselves, and part left to a network."""

from __future__ import annotations

from torch import Tensor


def velocity_from_residual(residual: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
    """Add to what a network gives the best linear guess of the velocity from its noisy input.

    It is the preconditioning of EDM (Karras et al. 2022, arXiv:2206.00364, section 5 and appendix B.6) for the straight
    line of flow matching. With `noisy = (1 - s) clean + s noise`, all of variance 1, and `n = s^2 + (1 - s)^2`:

    `velocity = noise - clean = (2 s - 1) / n * noisy + residual / sqrt(n)`.

    The residual, `((1 - s) noise - s clean) / sqrt(n)`, has variance 1 at every noise level and nothing in common with
    `noisy`: at pure noise it is the clean latents, negated, and no noise has to pass through the network.

    Args:
        residual: Output of the network, `[B, F, C, H, W]`.
        noisy: Latents that it saw, of the same shape.
        timestep: Noise level of each frame in [0, 1000], `[B, F]`.

    Returns:
        Velocity, in the dtype of the residual.
    """
    sigma = (timestep.float() / 1000)[..., None, None, None]
    norm = sigma.square() + (1 - sigma).square()
    return ((2 * sigma - 1) / norm * noisy + residual / norm.sqrt()).to(residual.dtype)
