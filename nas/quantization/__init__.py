"""Post-training quantization of exported children: `nas quantize`."""

from __future__ import annotations
