"""The checks of GPUs, one after the other, each in its own process, and a table of what became of them.

    python -m tests.gpu                       # all: some minutes; those whose packages are missing are named
    python -m tests.gpu step attentivenas     # some
    python -m tests.gpu --device cpu          # a rehearsal: the same code, small, where there is no GPU

Nothing is installed or downloaded. The table also goes to build/gpu.md, anew after each check.
"""

from __future__ import annotations

import argparse
import sys

import torch

from nas.device import machine
from tests.gpu.checks import CHECKS, ROOT, Done, run


def title(device: torch.device) -> str:
    """The machine, as a heading."""
    cuda = f", CUDA {torch.version.cuda}, {torch.cuda.device_count()} of them" if device.type == "cuda" else ""
    return f"{machine(device)}, torch {torch.__version__}{cuda}, Python {sys.version.split()[0]}"


def table(heading: str, done: list[Done]) -> str:
    """Markdown."""
    rows = [f"| {each.name} | {each.how} | {each.seconds:.0f} s | {_cell(each.told)} |" for each in done]
    return "\n".join([f"# {heading}", "", "| check | became | took | found |", "| --- | --- | --- | --- |", *rows, ""])


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"some of: {', '.join(CHECKS)}; all by default")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal, small")
    options = parser.parse_args()
    if unknown := [name for name in options.checks if name not in CHECKS]:
        parser.error(f"no check {unknown[0]}; there are: {', '.join(CHECKS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no GPU; to rehearse without one: python -m tests.gpu --device cpu")
    done: list[Done] = []
    (ROOT / "build").mkdir(exist_ok=True)
    heading = title(torch.device(options.device))
    for name in options.checks or CHECKS:
        done.append(run(name, CHECKS[name], options.device, small=options.device == "cpu"))
        print(f"{name}: {done[-1].how} in {done[-1].seconds:.0f} s: {done[-1].told}", file=sys.stderr, flush=True)
        (ROOT / "build" / "gpu.md").write_text(table(heading, done))
    print(table(heading, done))
    sys.exit(any(each.how == "failed" for each in done))


if __name__ == "__main__":
    main()
