"""The options of the recipes that come with raynas. Imports pydantic alone, so that an experiment is read before torch
is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from nas.config.section import ChildOptions, Kind, Quant, RecipeOptions, Share, as_tuple


def check_warmup(warmup_epochs: float, epochs: float) -> None:
    """Refuse a warm-up that is not shorter than the training; for validators of options."""
    if warmup_epochs >= epochs:
        raise ValueError(f"warmup_epochs {warmup_epochs:g} must be below epochs {epochs:g}")


class SandwichOptions(RecipeOptions):
    """BigNAS's sandwich rule with in-place distillation (arXiv:2003.11142)."""

    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd", description="adamw suits transformers; momentum is for sgd alone"
    )
    lr: PositiveFloat = Field(description="peak learning rate at this batch")
    warmup_epochs: NonNegativeFloat = Field(default=0.0, description="epochs of linear warm-up")
    schedule: Literal["cosine", "exponential"] = Field(
        default="cosine", description="how the learning rate falls after the warm-up"
    )
    momentum: Share = Field(default=0.9, description="of SGD")
    nesterov: bool = Field(default=True, description="Nesterov's momentum")
    weight_decay: NonNegativeFloat = Field(description="on weights of convolutions and linear layers")
    label_smoothing: Share = Field(
        default=0.1, description="share of the target spread over all classes, largest network only"
    )
    dropout: Share = Field(default=0.2, description="probability before the classifier, largest network only")
    drop_path: Share = Field(
        default=0.0, description="largest probability of dropping a residual branch, largest network only"
    )
    random_children: NonNegativeInt = Field(
        default=2, description="random networks a step, besides the largest and the smallest"
    )
    sampling: Literal["uniform", "best_up", "worst_up"] = Field(
        default="uniform",
        description=(
            "how these are drawn; best_up and worst_up take the best or worst of several that cost about the same, by "
            "their loss on the batch (arXiv:2011.09011)"
        ),
    )
    drawn: Annotated[int, Field(ge=2)] = Field(default=3, description="how many best_up and worst_up choose from")
    distillation: Literal["cross_entropy", "alpha"] = Field(
        default="cross_entropy",
        description=(
            "alpha: the adaptive alpha-divergence, which punishes too sure children as much as unsure ones "
            "(arXiv:2102.07954; needs clip_value or clip_norm)"
        ),
    )
    opening: Share = Field(
        default=0.0, description="share of training over which the values of the choices open, from one end to all"
    )
    opens_from: Literal["largest", "smallest"] = Field(
        default="largest",
        description="largest: progressive shrinking (arXiv:1908.09791); smallest: growing (arXiv:2512.12296)",
    )
    clip_value: PositiveFloat | None = Field(
        default=None, description="largest value of an element of the gradient; null for no clipping"
    )
    average: Share = Field(
        default=0.0, description="share of training that the moving average of weights reaches back; 0: none"
    )

    @model_validator(mode="after")
    def _consistent(self) -> SandwichOptions:
        check_warmup(self.warmup_epochs, self.epochs)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: true needs a momentum above 0")
        if self.opens_from != "largest" and not self.opening:
            raise ValueError(
                f"opens_from: {self.opens_from} says where choices open from, and opening is 0: they do not"
            )
        if self.drawn != type(self).model_fields["drawn"].default and self.sampling == "uniform":
            raise ValueError(f"drawn: {self.drawn} is for sampling best_up and worst_up; uniform draws each by itself")
        if self.distillation == "alpha" and self.clip_value is None and self.clip_norm is None:
            raise ValueError(
                "distillation: alpha without a clipped gradient ends in numbers that are not finite; set clip_value "
                "(AlphaNet: 1.0) or clip_norm"
            )
        return self


class MultiArchOptions(RecipeOptions):
    """Multi-architectural sampling (ViT-ResNAS): several random children a step, each on its share of the batch, in
    one pass."""

    archs: PositiveInt = Field(
        default=16, description="children a step over all workers; each has its share of the batch"
    )
    lr: PositiveFloat = Field(default=1e-3, description="peak learning rate at this batch, of AdamW")
    first_lr: NonNegativeFloat = Field(default=1e-6, description="learning rate at the start of the warm-up")
    final_lr: NonNegativeFloat = Field(default=1e-5, description="learning rate at the end of the cosine")
    warmup_epochs: NonNegativeFloat = Field(default=0.0, description="epochs of linear warm-up")
    weight_decay: NonNegativeFloat = Field(default=0.05, description="on matrices, kernels and position embeddings")
    label_smoothing: Share = Field(default=0.1, description="share of the target spread over all classes")
    dropout: Share = Field(default=0.0, description="probability before the classifier")
    drop_path: Share = Field(default=0.0, description="largest probability of dropping a residual branch")
    opening: Share = Field(
        default=0.25, description="share of training over which the choices open, from the largest child to all"
    )
    existence: Annotated[tuple[Literal[0, 1], ...], BeforeValidator(as_tuple), Field(min_length=1)] = Field(
        default=(1, 1, 0, 0),
        description="whether a block exists is drawn from this list, which opens from its first entry on",
    )

    @model_validator(mode="after")
    def _consistent(self) -> MultiArchOptions:
        check_warmup(self.warmup_epochs, self.epochs)
        return self

    def too_few(self, examples: int) -> str:
        if examples >= self.archs:
            return ""
        return (
            f"archs {self.archs} is more than the {examples} examples of one pass on one worker: lower it, or raise "
            "batch"
        )


class SinglePathOptions(RecipeOptions):
    """Random children, one or more a step (arXiv:1904.00420), under quantization noise where the family quantizes
    (arXiv:2208.14839)."""

    lr: PositiveFloat = Field(default=1e-3, description="peak learning rate of Adam")
    warmup_epochs: NonNegativeFloat = Field(default=0.0, description="epochs of linear warm-up; a cosine to 0 follows")
    weight_decay: NonNegativeFloat = Field(default=0.0, description="on weights of convolutions and linear layers")
    paths: PositiveInt = Field(
        default=1,
        description=(
            "random children a step, each on the whole batch, with every value of a choice as often as any other "
            "(FairNAS, arXiv:1907.01845)"
        ),
    )
    opening_epochs: NonNegativeFloat = Field(
        default=0.0,
        description=(
            "epochs in which the choices open: half of them the largest child alone, then ever more of each choice"
        ),
    )
    quant: Quant = Field(default="noise", description="in training: real quantizers, noise in their place, or off")
    clip_norm: PositiveFloat | None = Field(default=1.0, description="largest gradient norm; null for no clipping")

    @model_validator(mode="after")
    def _consistent(self) -> SinglePathOptions:
        check_warmup(self.warmup_epochs, self.epochs)
        if self.opening_epochs > self.epochs:
            raise ValueError(f"opening_epochs ({self.opening_epochs:g}) must be at most epochs ({self.epochs:g})")
        return self


class DifferentiableOptions(RecipeOptions):
    """The search of QuantNAS (arXiv:2208.14839): a mixture whose logits learn on half of the data, the weights on
    the other."""

    epochs: Annotated[PositiveFloat, Kind.EXTEND] = Field(
        description="passes over the weights' half of the training part"
    )
    batch: PositiveInt = Field(description="examples a step over all workers, of either half")
    lr: PositiveFloat = Field(default=1e-3, description="peak learning rate of the weights' Adam")
    warmup_epochs: NonNegativeFloat = Field(default=0.0, description="epochs of linear warm-up; a cosine to 0 follows")
    weight_decay: NonNegativeFloat = Field(default=3e-8, description="on weights of convolutions and linear layers")
    quant: Quant = Field(default="noise", description="in training: real quantizers, noise in their place, or off")
    clip_norm: PositiveFloat | None = Field(
        default=5.0, description="largest gradient norm of the weights; null for no clipping"
    )
    alpha_lr: PositiveFloat = Field(
        default=3e-4, description="of the logits' Adam; the paper's takes 80,000 steps: fewer need more"
    )
    alpha_warmup: Share = Field(default=0.45, description="share of the training before the logits learn")
    entropy: NonNegativeFloat = Field(
        default=1e-3, description="weight of the logits' entropy at the end, in nats over all slots"
    )
    bitops: NonNegativeFloat = Field(
        default=0.0, description="weight of expected BitOPs, over those of the uniform mixture"
    )

    @model_validator(mode="after")
    def _consistent(self) -> DifferentiableOptions:
        check_warmup(self.warmup_epochs, self.epochs)
        return self


class SingleOptions(ChildOptions):
    """One network, on labels: the space's only one, or its largest. What finetune does to a child."""

    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="sgd has Nesterov's momentum of 0.9")
    lr: PositiveFloat = Field(default=1e-3, description="peak learning rate at this batch; it falls along a cosine")
    final_lr: NonNegativeFloat = Field(default=1e-5, description="learning rate at the end")
    warmup_epochs: NonNegativeFloat = Field(default=0.0, description="epochs of linear warm-up")
    weight_decay: NonNegativeFloat = Field(default=0.05, description="on whatever has more than one axis")
    label_smoothing: Share = Field(default=0.1, description="share of the target spread over all classes")
    dropout: Share = Field(default=0.0, description="probability before the classifier")
    drop_path: Share = Field(default=0.0, description="largest probability of dropping a residual branch")
    quant: Quant = Field(default="off", description="how families that quantize run")
    average: Share = Field(
        default=0.0, description="share of training that the exported moving average of weights reaches back; 0: none"
    )

    @model_validator(mode="after")
    def _consistent(self) -> SingleOptions:
        check_warmup(self.warmup_epochs, self.epochs)
        return self
