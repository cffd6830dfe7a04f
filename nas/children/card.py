"""Model cards: README.md of a child's directory, for whoever takes it away without raynas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nas.preprocess import Preprocess
from nas.quantization.integer import Plan
from nas.space import COSTS, Measure
from nas.tasks.task import Task

if TYPE_CHECKING:
    from nas.children.quantize import QuantizedFigures

MOST_CLASSES = 20  # that a card lists
PACKED = """
`packed.safetensors` has the same child with its weights of at most 8 bits as levels of their grids,
those of at most 4 bits two to a byte:

```python
from safetensors.torch import load_file
from model import unpack

model.network.load_state_dict(unpack(model.network, load_file("packed.safetensors")))
```
"""
INTEGERS = """
`model.onnx` carries the same levels and steps, between QuantizeLinear and DequantizeLinear of bytes. On x86 CPUs
without VNNI, ONNX Runtime's kernels for 8-bit weights can saturate; its session option
`graph_optimization_level` = `ORT_ENABLE_BASIC` avoids that.
"""
PARITY = {
    "supernet": "the supernet's (batch statistics of the same examples)",
    "reloaded": "that of the child reloaded from `model.safetensors`",
    "packed": "that of `packed.safetensors`",
    "onnx": "that of `model.onnx` in ONNX Runtime",
    "picture_onnx": "that of `picture.onnx` in ONNX Runtime, from the picture on",
    "pt2": "that of `model.pt2`",
    "openvino": "that of `openvino.xml` in OpenVINO",
    "executorch": "that of `model.pte` in ExecuTorch",
}
RUNTIMES = {
    "pt2": 'With torch.export, without `model.py`: `torch.export.load("model.pt2").module()(pixels)`.',
    "openvino": "With OpenVINO (`openvino.bin` lies beside): "
    '`openvino.Core().compile_model("openvino.xml", "CPU")([pixels])[0]`.',
    "executorch": "With ExecuTorch (XNNPACK), one example of the size that it was exported with: "
    '`Runtime.get().load_program("model.pte").load_method("forward").execute([pixels])[0]`.',
}


def card(figures: Mapping[str, Any], about: Mapping[str, Any], task: Task, costs: Mapping[str, Measure] = COSTS) -> str:
    """What a child is, how good, how to use it.

    Args:
        figures: as metrics.json has them.
        about: as arch.json has it.
        task: says how pictures are prepared and what to make of outputs.
        costs: those that `figures` has by these names.
    """
    *most, last = (costs[key].told(f"{figures[key]:,}") for key in costs if costs[key].shown)
    takes_up = f"{', '.join(most)} and {last}" if most else last
    examples = figures.get("examples", {part: len(getattr(task, part)) for part in ("validation", "test")})
    width = {part: figures.get("interval", {}).get(part, {}) for part in ("validation", "test")}
    rows = [
        f"| {part} {metric} | {value:.4g}{_width(width[part].get(metric))} |"
        for part in ("validation", "test")
        for metric, value in figures[part].items()
    ]
    rows += [
        f"| test {metric} of {name} | {value:.4g} |"
        for name, given in figures["baselines"].items()
        for metric, value in given.items()
    ]
    cheaper = about.get("tied")
    tie = f"\nOn validation it is not told apart from {cheaper}, the next cheaper one on the front." if cheaper else ""
    told = " ± is what other examples would change, with a chance of 95 %." if any(width.values()) else ""
    size = " x ".join(str(n) for n in about["input"]["shape"])
    tuned = about.get("finetuned")
    how = "without retraining" if not tuned else f"and trained on by itself for {_long(tuned)}"
    if tuned and not tuned.get("from", True):
        how = f"and then trained by itself from fresh weights for {tuned['epochs']:g} epochs"
    return f"""# Child {figures["id"]} of {about["space"]} {about["size"]} on {named(about)}

{takes_up} for one input of {size} pixels. Cut out of a supernet
{how} (sha256 of the weights `{about["supernet"][:16]}`); its batch statistics were calibrated on training images.
It was chosen on {examples["validation"]:,} validation examples; the test figures, on {examples["test"]:,} others, were
taken once, after the search.{told}{tie}

| figure | value |
| --- | --- |
{chr(10).join(rows)}
{differences(figures["parity"])}
{usage(task, about)}
{PACKED if "packed" in figures["parity"] else ""}{INTEGERS if {"packed", "onnx"} <= figures["parity"].keys() else ""}
{files(figures["parity"], about, figures["id"])}"""


def _width(half: float | None) -> str:
    return "" if half is None else f" ± {half:.2g}"


def _long(tuned: Mapping[str, Any]) -> str:
    """How long a child was trained by itself, in words."""
    return f"{tuned['epochs']:g} epochs" if "epochs" in tuned else f"{tuned['steps']:,} steps"


def quantized_card(figures: QuantizedFigures, plan: Plan, about: Mapping[str, Any], task: Task) -> str:
    """How a child was quantized, how good it is, how to use it. Arguments as `card` has them."""
    metrics = list(figures["validation"])
    head = " | ".join(f"{part} {metric}" for part in ("validation", "test") for metric in metrics)
    rows = []
    for row in figures["rows"]:
        values = [f"{judged[metric]:.4g}" for judged in (row["validation"], row["test"]) for metric in metrics]
        rows.append(f"| {row['method']} | {row['bitops']:,} | {row['bytes']:,} | {' | '.join(values)} |")
    bits = [f"| {layer} | {each['weight_bits']} | {each['input_bits']} |" for layer, each in plan["layers"].items()]
    return f"""# Child {figures["id"]}: {plan["of"]} of {named(about)} quantized

{plan["method"]}: {figures["bitops"]:,} BitOPs for one example, {figures["bytes"]:,} bytes of weights (file header not
counted). Calibrated on images of the training part without labels; validation and test chose nothing here.

| method | BitOPs | bytes | {head} |
|{" --- |" * (3 + 2 * len(metrics))}
{chr(10).join(rows)}
{differences(figures["parity"])}
{usage(task, about)}

This computes in floats what integers would give. `model.onnx` computes with integers of 8 bits, which carry the levels
of fewer bits too. On x86 CPUs without VNNI these kernels saturate: there give the session
`options = onnxruntime.SessionOptions()` with
`options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC`, which computes the same in
floats.

{files(figures["parity"], about, figures["id"])}
| layer | weight bits | input bits |
| --- | --- | --- |
{chr(10).join(bits)}
"""


def named(about: Mapping[str, Any]) -> str:
    """The data set: its name, of a folder its last part too."""
    return " ".join(filter(None, (about["data"], about.get("folder", ""))))


def differences(parity: Mapping[str, float]) -> str:
    """How far outputs of the files are apart."""
    found = [f"- {parity[what]:.2g}: {told}" for what, told in PARITY.items() if what in parity]
    if not found:
        return ""
    many = f"{parity['examples']:.0f} validation examples (pictures: at most 8)"
    return f"\nLargest differences between the child's output and, on {many},\n\n{chr(10).join(found)}\n"


def prepared(preprocess: Preprocess) -> str:
    """What is done to a picture before the network sees it, in words."""
    colours = "RGB" if preprocess.channels == 3 else "grey levels (BT.601)"
    steps = [f"made {colours} with 8 bits a channel, upright as its EXIF says"]
    side, short = preprocess.side, preprocess.short
    if side is not None:
        steps.append(f"resized to a short side of {short} pixels (antialiased, bilinear, in whole grey levels)")
        steps.append(f"its centre of {side} x {side} cut out")
    return ", ".join([*steps, "divided by 255"])


def usage(task: Task, about: Mapping[str, Any]) -> str:
    """From a picture to what the output means, as lines that run."""
    if task.preprocess is None:
        return f'{given(about)}\n\n```python\nfrom model import Model\n\nmodel = Model.from_pretrained(".")\n```'
    works = about["input"].get("works_at")
    inside = f" The network makes it {works} x {works} itself: more pixels than that tell it nothing." if works else ""
    classes = about.get("classes", [])
    order = f"\nClasses in their order: {', '.join(classes)}." if 0 < len(classes) <= MOST_CLASSES else ""
    return f"""A picture is {prepared(task.preprocess)}; `Model` does that, as training and scoring did.{inside}

With PyTorch (needs torch and safetensors, and Pillow to open files; run it in this directory):

```python
import torch
from PIL import Image

from model import Model

torch.set_grad_enabled(False)
model = Model.from_pretrained(".")
```

```python
picture = Image.open("picture.png")  # or an array, uint8 (H, W) or (H, W, 3), or a tensor, uint8 (C, H, W)
output = model(picture)
{task.usage}
```

{task.judged}{order}

{given(about)} In PyTorch that is `model.network`, and `model.preprocess(picture)` makes such an input."""


def given(about: Mapping[str, Any]) -> str:
    """What the network alone takes."""
    channels, height, width = about["input"]["shape"]
    sizes = "height, width" if about["input"]["any_size"] else f"{height}, {width}"
    return (
        f"The network alone takes float32 pixels in [0, 1], `(batch, {channels}, {sizes})`{_least(about)}, already "
        "prepared; normalisation is inside."
    )


def _least(about: Mapping[str, Any]) -> str:
    return f" from {side} pixels a side on" if (side := about["input"].get("least_side")) else ""


def files(parity: Mapping[str, float], about: Mapping[str, Any], name: str) -> str:
    """The other ways to run it."""
    lines = []
    if "picture_onnx" in parity:
        lines.append(
            f"With ONNX Runtime, from a picture of any size{_least(about)}, uint8 `(H, W, 3)`, such as "
            '`numpy.asarray(picture.convert("RGB"))` of one that stands upright:\n'
            '`onnxruntime.InferenceSession("picture.onnx").run(None, {"picture": array})`.'
        )
    if "onnx" in parity:
        lines.append(
            "The network alone, any batch size: "
            '`onnxruntime.InferenceSession("model.onnx").run(None, {"pixels": array})`.'
        )
    lines += [told for name, told in RUNTIMES.items() if name in parity]
    own = about["child"].partition(":")[0].split(".")[0]
    modules = "" if own == "searchspaces" else f', modules=("{own}",)'
    lines.append(f'With raynas, from another directory, the network alone: `nas.load_child("PATH/{name}"{modules})`.')
    return "\n\n".join(lines) + "\n"
