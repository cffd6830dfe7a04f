"""DeepSpeed: the only file that imports it. One step of many backwards, right under ZeRO 0 to 3.

DeepSpeed clips to norm 1.0 unless told otherwise, and with its default bookkeeping several backwards before one step
are silently wrong under ZeRO 1 and 2; so the configuration is made here and never taken from outside.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nas.device import autocast
from nas.elastic import ElasticBatchNorm2d
from nas.space import Arch
from nas.supernet import Output, Pass, Soft, Supernet, main_head


def _extensions() -> Path:
    """Where torch keeps built operators: one folder for each environment and its versions; two that shared one would
    build by turns."""
    home = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]  # the compiler's command names it
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    stamp = f"torch{version('torch')}-deepspeed{version('deepspeed')}-{python}-{home}"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "raynas" / "extensions" / stamp


os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")  # both are read when DeepSpeed is first imported
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(_extensions()))
# A distribution's ninja and pip's hash commands differently: each builds anew, in every worker, what the other has
# built. Always pip's.
os.environ["PATH"] = os.pathsep.join(filter(None, [str(Path(sys.executable).parent), os.environ.get("PATH")]))


def _deepspeed() -> Any:
    """DeepSpeed without what it imports for its autotuner, MLflow, and what it compiles for its Muon: neither is used
    here, and both together are three of the four seconds that a worker's first engine took."""
    if "deepspeed" in sys.modules:
        return sys.modules["deepspeed"]
    hidden = sys.modules.setdefault("mlflow", None) is None  # type: ignore[arg-type]
    try:
        import deepspeed
        from deepspeed.runtime import compiler

        compiles, compiler.compile = compiler.compile, lambda: compiler.dummy_decorator
        try:
            import deepspeed.runtime.zero.muon.original_muon
        finally:
            compiler.compile = compiles
    finally:
        if hidden:
            del sys.modules["mlflow"]
    return deepspeed


class RanksDiffer(RuntimeError):
    """Ranks were about to run different architectures in the same pass; their gradients would be wrong without an
    error."""


class Engine:
    """A supernet under DeepSpeed: ``engine(x, archs, how)``, ``backward(loss)`` as often as wanted, ``step(lr)``.

    Args:
        net: on the CPU, every rank with the same weights; parameters contiguous (channels_last weights break
            DeepSpeed).
        optimizer: a torch optimizer over its parameters.
        zero_stage: 0 to 3.
        precision: ``"fp32"``, or ``"bf16"`` for autocast over fp32 weights.
        clip_norm: largest norm of the summed gradient; None does not clip.
        micro_batch: examples that one rank sees in one pass.
        device: where this rank works.
    """

    def __init__(
        self,
        net: Supernet,
        optimizer: torch.optim.Optimizer,
        zero_stage: int,
        precision: str,
        clip_norm: float | None,
        micro_batch: int,
        device: torch.device,
    ) -> None:
        deepspeed = _deepspeed()
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        config = {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,  # any number of backwards, one reduction, at the step
            "gradient_clipping": clip_norm or 0.0,
            # memory_efficient_linear would exchange torch's own linear function for good, for whoever uses it later in
            # this process
            "zero_optimization": {
                "stage": zero_stage,
                "overlap_comm": False,
                "contiguous_gradients": True,
                "memory_efficient_linear": False,
            },
            "zero_allow_untested_optimizer": True,  # SGD
            "steps_per_print": 10**12,
        }
        self.zero_stage, self.device = zero_stage, device
        self._precision = precision
        self._engine, *_ = deepspeed.initialize(model=net.to(device), optimizer=optimizer, config=config)
        self._talk: Any = dist.new_group(backend="gloo")  # small facts between ranks, without waiting for a GPU
        self.module: Supernet = self._engine.module
        synchronised = any(isinstance(each, ElasticBatchNorm2d) and each.sync for each in self.module.modules())
        self._talks = zero_stage == 3 or synchronised  # within a pass
        self._ran: list[str] = []  # what was run since the ranks last agreed
        self._names = {id(p): name for name, p in self.module.named_parameters()}

    def __call__(self, x: Tensor, archs: Arch | list[Arch] | Soft, how: Pass = Pass()) -> Tensor | Output:
        """The forward pass of the network. That all ranks come with the same architectures is told by `highest`, once
        a step; where ranks talk within a pass, of weights under ZeRO 3 or of batch statistics, it is asked here.

        Raises:
            RanksDiffer: another rank came with other architectures.
        """
        self._ran.append(_name(archs))
        if self._talks:
            self.highest()
        return self._engine(x, archs, how)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Around each forward pass and its loss."""
        return autocast(self.device, self._precision)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient to what this step has so far."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, lr: float) -> None:
        """Average the gradient over the ranks, clip it, and take one optimizer step with this learning rate."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        if self.zero_stage == 3:  # else a parameter without a gradient in the next step takes this one's again
            self._engine.optimizer.grad_partitions_flat_buffer.zero_()

    def highest(self, *values: float) -> list[float]:
        """The largest of each number over the ranks; one message, by which they also agree on the architectures that
        they ran since the last one.

        Raises:
            RanksDiffer: another rank ran other architectures.
        """
        ran, self._ran = self._ran, []
        digest = float(int.from_bytes(hashlib.sha256("|".join(ran).encode()).digest()[:6], "big"))
        seen = torch.tensor([digest, -digest, *values], dtype=torch.float64)
        dist.all_reduce(seen, dist.ReduceOp.MAX, group=self._talk)
        if seen[0] != -seen[1]:
            drawn = ", ".join(name[:12] for name in ran)
            raise RanksDiffer(
                f"rank {dist.get_rank()} drew {drawn} and another rank drew something else; all must draw from (seed, "
                "step)"
            )
        return seen[2:].tolist()

    def mean(self, value: Tensor) -> Tensor:
        """The average of a tensor over the ranks."""
        value = value.detach().clone()
        dist.all_reduce(value)
        return value / dist.get_world_size()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's plain value, in rank order."""
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._talk)
        return values

    @contextlib.contextmanager
    def whole(self) -> Iterator[Supernet]:
        """The bare network with all of its weights on every rank, to be read."""
        deepspeed = _deepspeed()
        gathered = list(self.module.parameters()) if self.zero_stage == 3 else []
        with deepspeed.zero.GatheredParameters(gathered):
            yield self.module

    def weights(self) -> dict[str, Tensor]:
        """Full fp32 weights and buffers on the CPU, whatever the stage; every rank must ask."""
        with self.whole() as net:
            return {name: value.detach().float().cpu().clone().contiguous() for name, value in net.state_dict().items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """Full optimizer state as ``"<key>/<parameter>"``, whatever the stage and the number of ranks; every rank
        must ask."""
        self._link()
        state: dict[str, Tensor] = {}
        for parameter, name in self._parameters():
            for key in self._keys():
                value = self._full_state(parameter, key)
                if value is not None:
                    state[f"{key}/{name}"] = value.detach().float().cpu().clone().contiguous()
        return state

    def load_optimizer_state(self, state: dict[str, Tensor], steps: int) -> None:
        """Take back what `optimizer_state` gave. The weights must have been in the network before the engine was made.

        ZeRO makes its state in the first step, so one step at rate 0 on zero gradients comes first: it changes no
        weight. The pass is a real one, since ZeRO 3 has its weights only within a forward.
        """
        from deepspeed.utils import safe_set_full_optimizer_state

        blank = torch.zeros(2, *self.module.input_shape, device=self.device)
        self.backward(main_head(self._engine(blank, self.module.space.largest(), Pass())).mean() * 0.0)
        self.step(0.0)
        self._link()
        for parameter, name in self._parameters():
            for key in self._keys():
                value = state.get(f"{key}/{name}")
                if value is None:
                    continue
                if self.zero_stage == 0:
                    self._torch_optimizer().state[parameter][key].copy_(value)
                else:
                    safe_set_full_optimizer_state(parameter, value.to(self.device), key)
        for entry in self._torch_optimizer().state.values():
            if "step" in entry:
                entry["step"] = torch.full_like(entry["step"], steps) if isinstance(entry["step"], Tensor) else steps

    def _parameters(self) -> Iterator[tuple[torch.nn.Parameter, str]]:
        return ((p, self._names[id(p)]) for p in self.module.parameters() if p.requires_grad)

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        optimizer = self._engine.optimizer
        return (
            optimizer if isinstance(optimizer, torch.optim.Optimizer) and self.zero_stage == 0 else optimizer.optimizer
        )

    def _link(self) -> None:
        """Show every parameter its optimizer state: ZeRO 1 and 2 do so once, after the first of several groups has
        stepped."""
        if self.zero_stage in (1, 2):
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _keys(self) -> list[str]:
        """The names of the optimizer's per-weight tensors (``momentum_buffer``; ``exp_avg``, ``exp_avg_sq``), the
        same on all ranks."""
        found = {
            k
            for entry in self._torch_optimizer().state.values()
            for k, v in entry.items()
            if isinstance(v, Tensor) and v.ndim > 0
        }
        return sorted({key for keys in self.gather(sorted(found)) for key in keys})

    def _full_state(self, parameter: torch.nn.Parameter, key: str) -> Tensor | None:
        from deepspeed.utils import safe_get_full_optimizer_state

        if self.zero_stage == 0:
            return self._torch_optimizer().state.get(parameter, {}).get(key)
        return safe_get_full_optimizer_state(parameter, key)

    def close(self) -> None:
        """Let go of DeepSpeed's hooks and buffers, so that another engine can be made over a new network."""
        self._engine.destroy()
        dist.destroy_process_group(self._talk)


def _name(archs: Arch | list[Arch] | Soft) -> str:
    """The same text on all ranks if and only if they come with the same: a list in any rotation, a mixture to the
    last bit."""
    if isinstance(archs, Soft):
        return "".join(str(table.tolist()) for table in archs.probabilities.values())
    return "".join(sorted(arch.id for arch in ([archs] if isinstance(archs, Arch) else archs)))


PREBUILD = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
import deepspeed
deepspeed.init_distributed("gloo")
"""


def prebuild(timeout_s: float = 600) -> None:
    """Build what DeepSpeed compiles at its first use on a CPU (about 30 s, once a machine), before many workers would
    all want it.

    One process builds under our own lock, which the kernel frees when its holder dies; a lock file that a killed build
    left behind in torch's cache is removed while ours is held.

    Raises:
        RuntimeError: the build fails; says why and what to do.
    """
    from filelock import FileLock

    cache = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "raynas.lock", timeout=timeout_s):
        if (cache / "built").exists():
            return
        for stale in cache.glob("**/lock"):
            stale.unlink()
        env = {
            **os.environ,
            "DS_ACCELERATOR": "cpu",
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
        }
        done = subprocess.run(
            [sys.executable, "-c", PREBUILD],
            env={**env, "MASTER_PORT": "0"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if done.returncode:
            raise RuntimeError(
                "DeepSpeed's CPU operator does not build; it needs g++ and ninja (nas doctor "
                f"tells):\n{done.stderr[-1500:]}"
            )
        (cache / "built").touch()
