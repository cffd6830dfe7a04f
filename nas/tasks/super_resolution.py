"""Single-image super-resolution: the low-resolution image is made from the other, and the network has to undo it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.preprocess import Preprocess
from nas.supernet import Output, Target, main_head
from nas.tasks import quality, tiles
from nas.tasks.options import SuperResolutionOptions
from nas.tasks.pairs import Crops, Wholes, divide, enlarge, load_photos
from nas.tasks.pictures import Picture, compare
from nas.tasks.task import Task
from nas.tasks.tiles import in_tiles

COST_SIDE = 32  # low-resolution pixels square that a cost is stated for, as in the literature on BitOPs
CLEARLY = 0.3  # dB above bicubic from which a network has learnt something
NEAR = 0.05  # of a pixel's range
SHOWN = 3  # test images in the pictures of a child
WHOLE = 4  # tiles along an image that is also run in one piece, to tell what tiles cost


class SuperResolution(Task):
    """Pairs of low and high resolution: data, L1 loss, PSNR and SSIM on luma.

    A test image of one channel is shown to networks as RGB, but its target has one channel, and is compared in full
    range: published figures are taken so (bridge in Set14).

    Attributes:
        input_shape: ``(C, h, w)`` that a cost is stated for.
        train, validation: crops, of different images; test: whole images.
        chance: PSNR of bicubic interpolation on `validation`, dB: of the better of `baselines`.
        learnt: that and 0.3 dB.

    Raises:
        FileNotFoundError, ValueError: as `load_photos` and `divide`.
    """

    Options = SuperResolutionOptions
    options: SuperResolutionOptions
    metric = "psnr"
    metrics = {"psnr": "higher", "ssim": "higher"}
    any_size = True
    helpers = (Path(tiles.__file__),)

    def __init__(self, options: SuperResolutionOptions, seed: int) -> None:
        super().__init__(options, seed)
        learnt, judged = load_photos(options)
        self.scale = options.scale
        self.train, self.validation = divide(learnt, options, seed)
        self.test, self.titles = Wholes(judged, options.scale), [photo.name for photo in judged]
        self.input_shape = (3, COST_SIDE, COST_SIDE)
        self.network = {"scale": options.scale, "channels": 3, "image": COST_SIDE, "mean": _mean(self.train)}
        self.about = {"scale": options.scale, **options.place}
        self.preprocess = Preprocess(3)
        sides = [options.patch, *(min(photo.shape) // options.scale for photo in judged)]
        self.least_side = min(sides if options.tile is None else [*sides, options.tile // 2 + options.overlap])
        x, truth = self.validation.batch(np.arange(len(self.validation)))
        self.chance = max(self._psnr(enlarged(x), truth) for enlarged in self.baselines().values())
        self.learnt = self.chance + CLEARLY

    @property
    def usage(self) -> str:
        """The larger image as a file; in tiles, where it is judged so."""
        lines = [
            "levels = (output[0].clamp(0, 1) * 255).round().byte()",
            'Image.fromarray(levels.permute(1, 2, 0).numpy()).save("larger.png")',
        ]
        if tile := self.options.tile:
            within = f"in_tiles(model.network, model.preprocess(picture), {self.scale}, {tile}, {self.options.overlap})"
            lines.insert(0, f"from model import in_tiles\n\noutput = {within}  # as it was judged: in tiles")
        return "\n".join(lines)

    @property
    def judged(self) -> str:
        """How a low-resolution image is made of a test image, and what is compared."""
        scale, border = self.scale, self.scale if self.options.border is None else self.options.border
        rounded = ", rounded to whole numbers" if self.options.round_luma else ""
        return f"""For the test figures each test image was cut to a multiple of {scale} and made smaller by Pillow's
bicubic filter:

```python
whole = Image.open("picture.png")
whole = whole.convert("RGB").crop((0, 0, *(side // {scale} * {scale} for side in whole.size)))
picture = whole.resize([side // {scale} for side in whole.size], Image.Resampling.BICUBIC)
```

PSNR (dB) and SSIM compare the luma (ITU-R BT.601, 16 to 235; of files of one channel 0 to 255{rounded}) of `levels`
with that of `whole`, without {border} pixels at each edge, and are means over the test images."""

    def loss(self, output: Tensor | Output, target: Tensor | Target, label_smoothing: float = 0.0) -> Tensor:
        """Mean absolute difference of ``(n, 3, H, W)`` in [0, 1]. There are no labels, so there is nothing to
        smooth."""
        assert isinstance(output, Tensor) and isinstance(target, Tensor)  # there is no auxiliary head
        with torch.autocast(output.device.type, enabled=False):
            return F.l1_loss(output.float(), target)

    def signal(self, output: Tensor | Output) -> Tensor:
        """What a teacher tells: its image, float32, without gradient."""
        return main_head(output).detach().float()

    def distill(self, output: Tensor | Output, signal: Tensor | Output) -> Tensor:
        """Difference to the teacher's image, absolute beyond `NEAR`, squared below: children of the sandwich rule are
        near the largest from the start on, where an absolute one's gradient pulls at shared weights as hard as the
        truth's, and the largest ended below bicubic."""
        with torch.autocast(main_head(output).device.type, enabled=False):
            return F.smooth_l1_loss(main_head(output).float(), main_head(signal), beta=NEAR)

    def predict(self, child: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The child's output for low-resolution images; in tiles where they are larger than ``data.tile``."""
        if self.options.tile is None:
            return child(x)
        return in_tiles(child, x, self.scale, self.options.tile, self.options.overlap)

    def scores(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """Sums over a batch, which add up over batches: ``examples``, ``psnr`` (dB), ``ssim``."""
        with torch.no_grad():
            pair = self._lumas(output, target)
            return {
                "examples": float(len(target)),
                "psnr": float(quality.psnr(*pair).sum()),
                "ssim": float(quality.ssim(*pair).sum()),
            }

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Means over images of PSNR in dB and of SSIM, of added `scores`."""
        return {name: sums[name] / sums["examples"] for name in self.metrics}

    def baselines(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """What a child must beat: bicubic interpolation by Pillow's kernel (a = -0.5), whose figures are the published
        ones, and by torch's (-0.75), to which networks add: what one comes to that adds nothing."""
        return {
            "bicubic": lambda x: enlarge(x, self.scale),
            "bicubic skip": lambda x: F.interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False),
        }

    @torch.inference_mode()
    def pictures(self, child: nn.Module, device: torch.device) -> list[Picture]:
        """Some test images, spread over the set: bicubic, the child's and the true one, enlarged where these differ
        most."""
        found = []
        for row in sorted(set(np.linspace(0, len(self.test) - 1, SHOWN).round().astype(int).tolist())):
            x, truth = (t.to(device) for t in self.test.batch(np.array([row])))
            output = self.predict(child, x)
            given = {"bicubic": enlarge(x, self.scale), "child": output}
            notes = {name: f"{self._psnr(image, truth):.2f} dB" for name, image in given.items()}
            if (tiled := self.options.tile) and tiled < max(
                x.shape[-2:]
            ) <= WHOLE * tiled:  # larger ones may not fit into memory in one piece
                notes["child"] += f"; in one piece {self._psnr(child(x), truth):.2f} dB"
            found.append(compare(self.titles[row], {**given, "truth": truth.expand_as(output)}, {**notes, "truth": ""}))
        return found

    def _lumas(self, output: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        border = self.scale if self.options.border is None else self.options.border
        grey = truth.shape[1] == 1
        a, b = (
            quality.luma(t, border, self.options.round_luma, full=grey) for t in (output, truth.expand(-1, 3, -1, -1))
        )
        return a, b

    def _psnr(self, output: Tensor, truth: Tensor) -> float:
        return float(quality.psnr(*self._lumas(output, truth)).mean())


def _mean(crops: Crops) -> tuple[float, ...]:
    """Mean of each colour over the images that are trained on, in [0, 1]."""
    photos = [crops.photos[row] for row in np.unique(crops.cells[:, 0])]
    total = np.sum([photo.sums for photo in photos], axis=0)
    return tuple(float(value) for value in total / (255 * sum(photo.shape[0] * photo.shape[1] for photo in photos)))
