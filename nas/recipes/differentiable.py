"""Differentiable search (DARTS, Liu et al. 2019; QuantNAS, arXiv:2208.14839, section on the search procedure).

The network runs as a mixture: every slot the mean of what it could hold, by the softmax of its logits. In each step the
logits take one step of their own Adam on their own half of the training data, then the weights one on theirs. Entropy
and BitOPs are regularised with the logits. At the end the largest logit of each slot is the architecture, which is
trained again from scratch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from nas.recipes.options import DifferentiableOptions
from nas.recipes.recipe import Batch, Kept, Recipe, Run, Step, Teaching, decayed, schedule
from nas.space import Arch
from nas.supernet import Pass, Soft, Supernet

EPOCHS = 20  # of the paper's search: its schedules are laid over a training of any length in so many stairs
BETAS = (0.5, 0.999)


class Differentiable(Recipe):
    """A mixture of all sub-networks; `alpha` holds its logits, slot after slot.

    With gradient accumulation the logits take a step for each micro-batch.

    Args:
        task: mixes examples and gives the loss.
        options: the recipe section of an experiment.
    """

    Options = DifferentiableOptions
    options: DifferentiableOptions
    feeds = {"weights": 0.5, "alpha": 0.5}
    names = ("loss",)

    def __init__(self, task: Teaching, options: DifferentiableOptions) -> None:
        super().__init__(task, options)
        self.alpha: Tensor | None = None
        self.adam: torch.optim.Adam | None = None

    @property
    def quant(self) -> str:
        return self.options.quant

    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        x, target = self.task.mix(*batches["weights"], net.aux_grid, step.generator)
        if self.alpha is None:
            self._begin(torch.zeros(sum(math.prod(shape) for shape in shapes(net).values())))
        assert self.alpha is not None
        if self.alpha.device != x.device:
            self.load(
                {
                    name: value.to(x.device) if isinstance(value, Tensor) else value
                    for name, value in self.state().items()
                }
            )
        if step.progress >= self.options.alpha_warmup:
            self._learn(net, batches["alpha"], step)
        soft = mixture(net, self.alpha.detach())
        yield self.task.loss(run(x, soft, self._how(step)), target)

    def _how(self, step: Step) -> Pass:
        return Pass(quant=self.options.quant, generator=step.generator)

    def _learn(self, net: Supernet, batch: Batch, step: Step) -> None:
        """A step of the logits, through the bare network, so that the engine sees nothing of it."""
        assert self.alpha is not None and self.adam is not None
        x, target = self.task.mix(*batch, net.aux_grid, step.generator)
        loss = self.task.loss(net(x, mixture(net, self.alpha), self._how(step)), target)
        (gradient,) = torch.autograd.grad(loss + self.penalty(net, step.progress), self.alpha)
        self.alpha.grad = step.mean(gradient)
        self.adam.step()
        self.alpha.grad = None

    def penalty(self, net: Supernet, progress: float) -> Tensor:
        """The logits' entropy, in nats summed over slots, and BitOPs over those of the uniform mixture, each by its
        weight."""
        assert self.alpha is not None
        o = self.options
        stair = min(int(progress * EPOCHS), EPOCHS - 1)
        weight = o.entropy * entropy_weight(stair, EPOCHS, round(o.alpha_warmup * EPOCHS))
        total = weight * entropy(net, self.alpha)
        if o.bitops:
            uniform = net.expected_bitops(mixture(net, torch.zeros_like(self.alpha)))
            total = total + o.bitops * (net.expected_bitops(mixture(net, self.alpha)) / uniform).float()
        return total

    def figures(self, net: Supernet) -> dict[str, float]:
        """Entropy of the logits, nats summed over slots, and the BitOPs that their mixture expects."""
        if self.alpha is None:
            return {}
        alpha = self.alpha.detach()
        return {
            "entropy": float(entropy(net, alpha)),
            "expected_bitops": float(net.expected_bitops(mixture(net, alpha))),
        }

    def chosen(self, net: Supernet) -> dict[str, Arch]:
        """The architecture that the search would give if it ended now."""
        return {} if self.alpha is None else {"chosen": architecture(net, self.alpha)}

    def optimizer(self, net: Supernet) -> torch.optim.Optimizer:
        """Adam over the weights; the logits are not among them.

        Raises:
            ValueError: the family has no slots, or the space has choices that no slot decides.
        """
        if not net.slots:
            raise ValueError(
                "recipe differentiable: this family has no slots whose choices could be mixed; use another recipe"
            )
        decided = {choice for choices in net.slots.values() for choice in choices}
        if beside := [n for n, choice in net.space.choices.items() if len(choice.values) > 1 and n not in decided]:
            raise ValueError(
                f"recipe differentiable: {', '.join(beside)} cannot be mixed; settle each at one value (with "
                "space.options.settled, where the family has it), or use the recipe single_path"
            )
        return torch.optim.Adam(decayed(net, self.options.weight_decay), lr=self.options.lr)

    def lr(self, step: Step) -> float:
        """Linear over the warm-up, then a cosine to 0; that of the logits stays what it is."""
        o = self.options
        return o.lr * schedule("cosine", step.progress, o.warmup_epochs / o.epochs)

    def state(self) -> dict[str, Kept]:
        """The logits and their Adam."""
        if self.alpha is None or self.adam is None:
            return {}
        kept: dict[str, Kept] = {"alpha": self.alpha.detach().clone()}
        for name, value in self.adam.state[self.alpha].items():
            kept[name] = value.clone() if value.ndim else int(value)
        return kept

    def load(self, state: Mapping[str, Kept]) -> None:
        kept, step = {name: value for name, value in state.items() if isinstance(value, Tensor)}, state.get("step", 0)
        if "alpha" in kept:
            assert isinstance(step, int)
            self._begin(kept["alpha"], kept.get("exp_avg"), kept.get("exp_avg_sq"), step)

    def _begin(
        self, alpha: Tensor, exp_avg: Tensor | None = None, exp_avg_sq: Tensor | None = None, step: int = 0
    ) -> None:
        """The logits and their Adam, from the beginning or from where they stood."""
        self.alpha = alpha.clone().requires_grad_()
        self.adam = torch.optim.Adam([self.alpha], lr=self.options.alpha_lr, betas=BETAS)
        if exp_avg is not None and exp_avg_sq is not None:
            self.adam.state[self.alpha] = {
                "step": torch.tensor(float(step)),
                "exp_avg": exp_avg.clone(),
                "exp_avg_sq": exp_avg_sq.clone(),
            }


def shapes(net: Supernet) -> dict[str, tuple[int, ...]]:
    """For each slot the number of values of each of its choices."""
    return {
        slot: tuple(len(net.space.choices[choice].values) for choice in choices) for slot, choices in net.slots.items()
    }


def _split(net: Supernet, alpha: Tensor) -> dict[str, Tensor]:
    """alpha, one-dimensional -> slot by slot."""
    found = shapes(net)
    return dict(zip(found, alpha.split([math.prod(shape) for shape in found.values()]), strict=True))


def mixture(net: Supernet, alpha: Tensor) -> Soft:
    """The softmax of the logits, slot by slot."""
    found = shapes(net)
    return Soft({slot: part.softmax(0).view(found[slot]) for slot, part in _split(net, alpha).items()})


def architecture(net: Supernet, alpha: Tensor) -> Arch:
    """What a search has found: the largest logit of every slot. `alpha` is that of a checkpoint's
    ``recipe.safetensors``."""
    return mixture(net, alpha).arch(net)


def entropy(net: Supernet, alpha: Tensor) -> Tensor:
    """In nats, summed over the slots."""
    logs = [part.log_softmax(0) for part in _split(net, alpha).values()]
    return -torch.stack([(log.exp() * log).sum() for log in logs]).sum()


def entropy_weight(epoch: int, epochs: int, warmup: int) -> float:
    """The share of the entropy's weight in an epoch: nothing over the logits' warm-up and a quarter of the rest, then
    up to 1.

    A linear ramp from the end of the warm-up, times a logarithmic one from where the quarter ends.
    """
    epoch, epochs = epoch - warmup, epochs - warmup
    quarter = epochs // 4
    if epoch < quarter:
        return 0.0
    return epoch / max(epochs - 1, 1) * math.log(epoch - quarter + 2, epochs - quarter + 1)
