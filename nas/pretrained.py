"""An exported child from its directory: network and preprocessing in one. This file is copied beside it, after both.

It needs torch, safetensors and what stands in config.json: the class of the network and what it is called with.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nas.preprocess import Preprocess


class Model(nn.Module):
    """A picture in, the network's output out.

    Attributes:
        network: takes float32 pixels in [0, 1], ``(N, C, H, W)``.
        preprocess: makes these of a picture; None where inputs are no pictures, and the network is given what it takes.
        classes: what the outputs stand for, in their order; empty where they are no classes.
    """

    def __init__(self, network: nn.Module, preprocess: Preprocess | None, classes: Sequence[str] = ()) -> None:
        super().__init__()
        self.network, self.preprocess, self.classes = network, preprocess, tuple(classes)

    def forward(self, picture: Any) -> Tensor:
        """See `Preprocess.levels` for what a picture may be, wherever it and the network lie."""
        pixels = picture if self.preprocess is None else self.preprocess(picture)
        return self.network(pixels.to(next(self.network.parameters()).device))

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Model:
        """The child of a directory, in evaluation mode.

        Raises:
            OSError: a file is missing.
        """
        from safetensors.torch import load_file

        home = Path(directory)
        config = json.loads((home / "config.json").read_text())
        network, tensors = globals()[config["class"]](**config["network"]), load_file(home / "model.safetensors")
        if plan := config.get("quantization"):
            network = importlib.import_module("quantized").load_quantized(network, plan, tensors)
        else:
            network.load_state_dict(tensors)
        given = config["preprocess"]
        return cls(network, given and Preprocess(**given), config.get("classes", ())).eval()
