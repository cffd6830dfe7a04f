"""Children whose files an older raynas wrote: they load, and compute what they did."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import nas
from nas.children.export import bundle
from nas.children.quantize import SOURCES
from nas.quantization.learned import QuantConv2d, unpack
from searchspaces.quantnas import QuantNAS

CHILDREN = Path(__file__).parent.parent / "golden" / "children"


@torch.no_grad()
def check_example(net: nn.Module, directory: Path) -> None:
    """To the bit where the same torch computes with the same instructions; elsewhere sums may have another order."""
    with safe_open(directory / "example.safetensors", "pt") as file:
        x, expected, made = file.get_tensor("input"), file.get_tensor("output"), file.metadata()
    found: Tensor = net.eval()(x)
    if made == {"torch": torch.__version__.split("+")[0], "cpu": torch.backends.cpu.get_cpu_capability()}:
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["quantnas", "quantnas-w3w4", "bignas-w3w4"])
def test_an_old_child_computes_what_it_did(name: str) -> None:
    check_example(nas.load_child(CHILDREN / name), CHILDREN / name)


def test_an_old_packed_child_computes_what_it_did() -> None:
    """Its weights lie on their grids, a signed nibble each where they have at most 4 bits."""
    net = nas.load_child(CHILDREN / "quantnas")
    layers = {name: module for name, module in net.named_modules() if isinstance(module, QuantConv2d)}
    assert {layer.bits for layer in layers.values()} == {(2,), (4,), (8,), (16,)}
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    packed = load_file(CHILDREN / "quantnas" / "packed.safetensors")
    net.load_state_dict(unpack(net, packed))
    check_example(net, CHILDREN / "quantnas")
    for name, layer in layers.items():
        (bits,) = layer.bits
        assert packed[f"{name}.weight"].dtype == (
            torch.uint8 if bits <= 4 else torch.int8 if bits == 8 else torch.float32
        )
        if bits < 16:
            step = layer.weight_step[str(bits)].detach().exp().view(-1, 1, 1, 1)
            expected = (before[name] / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            assert torch.equal(layer.weight.detach(), expected * step), name


@pytest.mark.parametrize("name", ["quantnas-w3w4", "bignas-w3w4"])
def test_old_quantized_weights_lie_two_to_a_byte(name: str) -> None:
    """Read by hand: level 2i in the low half of byte i, level 2i + 1 in the high one."""
    net, tensors = nas.load_child(CHILDREN / name), load_file(CHILDREN / name / "model.safetensors")
    packed = [key for key, tensor in tensors.items() if key.endswith(".weight") and tensor.dtype == torch.uint8]
    assert packed and len(packed) == sum(tensor.dtype == torch.int8 for tensor in net.state_dict().values())
    for key in packed:
        weight, zero = net.state_dict()[key], tensors[key.replace("weight", "zero")].tolist()
        levels = [level for byte in tensors[key].tolist() for level in (byte & 15, byte >> 4)]
        rows = [
            [level - zero[i] for level in levels[i * weight[0].numel() : (i + 1) * weight[0].numel()]]
            for i in range(len(weight))
        ]
        assert weight.flatten(1).tolist() == rows, key


STRANGER = """
import json, sys
sys.modules["nas"] = sys.modules["searchspaces"] = None
import torch
from safetensors.torch import load_file
from model import QuantNASChild, unpack
from quantized import load_quantized
about = json.load(open(sys.argv[1] + "/arch.json"))
net = QuantNASChild(**about["network"]).eval()
if "quantization" in about:
    net = load_quantized(net, about["quantization"], load_file(sys.argv[1] + "/model.safetensors"))
else:
    net.load_state_dict(unpack(net, load_file(sys.argv[1] + "/packed.safetensors")))
example = load_file(sys.argv[1] + "/example.safetensors")
with torch.no_grad():
    torch.testing.assert_close(net(example["input"]), example["output"], atol=1e-5, rtol=1e-5)
"""


@pytest.mark.parametrize("name", ["quantnas", "quantnas-w3w4"])
def test_todays_sources_read_old_files_without_raynas(name: str, tmp_path: Path) -> None:
    """model.py and quantized.py as they are bundled beside children now."""
    (tmp_path / "model.py").write_text(bundle(QuantNAS.sources))
    (tmp_path / "quantized.py").write_text(bundle(SOURCES))
    command = [sys.executable, "-c", STRANGER, str(CHILDREN / name)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
