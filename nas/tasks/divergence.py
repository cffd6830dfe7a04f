"""The adaptive alpha-divergence (Wang et al., "AlphaNet: Improved Training of Supernets with Alpha-Divergence",
arXiv:2102.07954).

Of a teacher p and a student q it is ``D_a(p||q) = sum q ((p/q)^a - 1) / (a (a - 1))``, and KL(p||q) in the limit a = 1.
That is hard on a student who is surer than the teacher where both see a class, and blind to mass that q has and p has
not; a = -1 is the other way round. Of each example the larger of the two counts. Powers of the ratio are clipped, since
with a below 0 they grow without bound where the teacher gives nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nas.supernet import Output

LOW, CLIP = -1.0, 5.0  # the smaller a, the larger is 1; the largest power of the ratio (AlphaNet's own)


def adaptive(output: Tensor | Output, taught: Tensor | Output) -> Tensor:
    """Mean over the examples, and the sum of both heads where there are two; nats.

    Args:
        output: logits ``(n, classes)``, and where there is an auxiliary head ``(n, cells, classes)``.
        taught: the teacher's probabilities of the same shape, without gradient.
    """
    if isinstance(output, Output):
        return torch.stack([adaptive(*pair) for pair in zip(output, taught, strict=True)]).sum()
    assert isinstance(taught, Tensor)
    log_q = output.float().log_softmax(-1)
    (covering, its), (seeking, others) = forward_kl(log_q.detach(), taught), alpha(log_q.detach(), taught, LOW)
    larger = covering >= seeking
    surrogate = -(torch.where(larger[..., None], its, others) * log_q).sum(-1)  # has the gradient, and no meaning else
    return (torch.where(larger, covering, seeking) + surrogate - surrogate.detach()).mean()


def forward_kl(log_q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p||q), ``(...)``, and what the gradient of each -log q is weighed by, ``(..., classes)``."""
    return (torch.xlogy(p, p) - p * log_q).sum(-1), p


def alpha(log_q: Tensor, p: Tensor, a: float) -> tuple[Tensor, Tensor]:
    """D_a, `a` neither 0 nor 1, and such weights: ``q (r^a / a + 1 / (a (a - 1)))`` with the ratio r = p/q, r^a
    clipped."""
    q, scale = log_q.exp(), 1 / (a * (a - 1))
    power = (a * (p.log() - log_q)).exp().clamp(max=CLIP)
    return (q * (power - 1) * scale).sum(-1), q * (power / a + scale)
