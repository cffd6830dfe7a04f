"""A supernet in training, as files that know neither the number of ranks nor the ZeRO stage. The only file that names
them.

Tensors are safetensors, the rest is JSON: nothing is unpickled. Torch is imported when tensors are asked for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nas.rundir import forms
from nas.rundir.atomic import MANIFEST, Damaged, verify, write_directory

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
RECIPE, STATE = "recipe.safetensors", "state.json"
NAME = re.compile(r"step-(\d{8})")


@dataclass
class State:
    """What a checkpoint keeps besides tensors.

    Attributes:
        step, total: optimizer steps done and planned.
        seconds: time spent in the loop so far, over all attempts.
        yardstick: the largest loss of the first steps.
        recent: the last good losses, the newest at the end.
        best: the largest child's best metric on the panel so far, if there was a panel.
    """

    step: int
    total: int
    seconds: float = 0.0
    yardstick: float = 0.0
    recent: list[float] = field(default_factory=list)
    best: float | None = None

    def share_done(self, max_minutes: float | None) -> float:
        """How much of the training is done, in [0, 1]: by steps, or by time where that is bounded and further on."""
        by_time = self.seconds / (60 * max_minutes) if max_minutes else 0.0
        return min(1.0, max(self.step / self.total, by_time))


class Checkpoint:
    """A whole checkpoint. `open` and `newest` verify every byte of it, once; `write` makes one.

    Args:
        directory: its own.
        manifest: what `verify` said of it, here or on another rank.

    Attributes:
        sha: sha256 of the trained weights: what journals and children are keyed by.
        state: how far the training was.
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        self.directory, self.manifest = directory, manifest
        self.sha: str = manifest["files"][WEIGHTS]["sha256"]
        kept = forms.read(directory / STATE, forms.State)
        self._plain = kept.recipe
        self.state = State(**kept.state.model_dump(include=set(State.__dataclass_fields__)))

    @classmethod
    def open(cls, directory: Path) -> Self:
        """The checkpoint in a directory.

        Raises:
            Damaged: it is not whole.
        """
        return cls(directory, verify(directory, (WEIGHTS, OPTIMIZER, RECIPE, STATE)))

    @classmethod
    def newest(cls, root: Path, warn: Callable[[str], None] = lambda _: None) -> Self | None:
        """The newest whole one under `root`; older ones are tried in turn, and `warn` is told why a newer one was
        passed over.

        Raises:
            Damaged: there are checkpoints and none of them is whole.
        """
        found, problems = directories(root), []
        for path in reversed(found):
            try:
                return cls.open(path)
            except Damaged as problem:
                problems.append(str(problem))
                warn(f"checkpoint passed over: {problem}")
        if found:
            raise Damaged(
                "no checkpoint is whole:\n  "
                + "\n  ".join(problems)
                + f"\nrestore one, or delete {root} to train from the start"
            )
        return None

    @classmethod
    def write(
        cls,
        root: Path,
        state: State,
        weights: dict[str, Tensor],
        optimizer: dict[str, Tensor],
        recipe: Mapping[str, Tensor | float | int | str | None],
        allowed: Callable[[], None],
    ) -> Path:
        """Make a checkpoint under `root`.

        Args:
            weights, optimizer: full and fp32, on the CPU.
            recipe: what the recipe keeps besides, tensors and plain values.
            allowed: called just before it becomes visible; raises where the writer has lost the right to write.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file
        from torch import Tensor

        tensors = {name: value for name, value in recipe.items() if isinstance(value, Tensor)}
        plain = {name: value for name, value in recipe.items() if name not in tensors}

        def fill(directory: Path) -> None:
            for name, values in {WEIGHTS: weights, OPTIMIZER: optimizer, RECIPE: tensors}.items():
                try:
                    save_file(values, directory / name)
                except SafetensorError as error:  # which an OSError was, before it went through Rust
                    if code := re.search(r"os error (\d+)", str(error)):
                        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
                    raise
            (directory / STATE).write_text(json.dumps({"state": asdict(state), "recipe": plain}))

        return write_directory(
            root / f"step-{state.step:08d}", fill, {"step": state.step, "total": state.total}, allowed
        )

    def finished(self, total: int, max_minutes: float | None) -> bool:
        """Whether nothing is left to train, where a whole training takes `total` steps, or so many minutes."""
        return replace(self.state, total=total).share_done(max_minutes) >= 1

    def weights(self) -> dict[str, Tensor]:
        """Those that are trained: full, fp32, on the CPU."""
        return self._tensors(WEIGHTS)

    def child_weights(self) -> dict[str, Tensor]:
        """Those that children are cut from: a recipe's moving average where it keeps one, else those that are
        trained."""
        from nas.recipes.recipe import AVERAGE

        kept = self._tensors(RECIPE).items()
        return self.weights() | {name.removeprefix(AVERAGE): value for name, value in kept if name.startswith(AVERAGE)}

    def optimizer(self) -> dict[str, Tensor]:
        """The optimizer's full state, by ``<key>/<parameter>``."""
        return self._tensors(OPTIMIZER)

    def recipe(self) -> dict[str, Any]:
        """What the recipe keeps besides the weights: tensors and plain values."""
        return {**self._plain, **self._tensors(RECIPE)}

    def _tensors(self, name: str) -> dict[str, Tensor]:
        return tensors_in(self.directory / name)


def tensors_in(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    Raises:
        Damaged: it holds none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise Damaged(f"{path} holds no tensors: {error}") from error


def directories(root: Path) -> list[Path]:
    """The checkpoints under `root`, oldest first, whole or not."""
    found = [(int(match[1]), path) for path in root.glob("step-*") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def newest_sha(root: Path) -> str | None:
    """What the newest checkpoint's manifest says of the weights, nothing verified; None where there is none to read."""
    for path in reversed(directories(root)):
        try:
            return str(json.loads((path / MANIFEST).read_text())["files"][WEIGHTS]["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def retain(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what killed writers left behind an hour ago or earlier."""
    for path in directories(root)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
    for left in (*root.glob(".step-*.tmp"), *root.glob(".step-*.old")):
        if time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)
