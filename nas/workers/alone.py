"""Networks trained alone, side by side as Ray Tune trials: what a supernet's scores are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray import tune

from nas.build import load_task, make_supernet
from nas.children.alone import Alone
from nas.children.evaluate import Evaluator, Judged
from nas.config.experiment import Experiment, parse
from nas.device import configure_process
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fence
from nas.space import Arch
from nas.tasks.index import Index
from nas.workers.session import check_room, gpu_share, has_gpus, on_ray, session
from nas.workers.stopping import StopAsked, Stopped

Job = tuple[Arch, int]  # a network and a seed
Trained = Callable[[Arch, int, Judged], None]


class Ending(tune.Stopper):
    """Begins nothing new when the run is asked to end."""

    def __init__(self, fence: Fence) -> None:
        self.fence = fence

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.fence.stopping()


class Learner(tune.Trainable):
    """An actor that trains one network after another from fresh weights, and judges each on validation."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], experiment: dict[str, Any], run: RunDir, fence: Fence, gpu: bool
    ) -> None:
        self.told, self.device = StopAsked(fence), configure_process(gpu, 1)
        self.settings = parse(experiment)
        self.task = load_task(self.settings, Index(run.index, run.batches))
        self.net = make_supernet(self.settings, self.task).to(self.device)
        self.evaluator = Evaluator(self.net, self.task, self.settings.search, self.device, shared=run.batches)
        self.job = config["job"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.job = new_config["job"]
        return True

    def step(self) -> dict[str, Any]:
        choices, seed = self.job
        recipe = self.settings.alone
        assert recipe is not None
        alone = Alone(self.settings, self.task, self.net, recipe, self.device, seed)
        net = alone.fresh(self.net, Arch(choices))
        try:
            alone.train(net, max(1, round(recipe.epochs * alone.epoch)), self.evaluator.calibration, self.told)
        except Stopped:
            return {"done": True}
        self.evaluator.net = net
        metrics, parts, _ = self.evaluator.judge(net.space.largest())
        return {"metrics": metrics, "parts": parts, "done": True}


class Notes(tune.Callback):
    """Hands on what has been trained, as it comes."""

    def __init__(self, fence: Fence, trained: Trained) -> None:
        self.fence, self.trained = fence, trained

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; nothing is ever read back from that."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result, (choices, seed) = trial.last_result, trial.config["job"]
        if "metrics" in result:
            self.fence.check()
            self.trained(Arch(choices), seed, Judged(result["metrics"], result["parts"]))


def train_alone(experiment: Experiment, run: RunDir, fence: Fence, jobs: Sequence[Job], trained: Trained) -> str:
    """Train these, `search.trials` at a time.

    Args:
        trained: called with each that is done: network, seed, figures on validation.

    Returns:
        Why some are not done; empty where all are.

    Raises:
        TooLittle: the cluster has less than the experiment asks for.
    """
    with session():
        check_room(experiment)
        trials, gpu = experiment.search.trials, has_gpus(experiment.train.use_gpu)
        share = gpu_share(trials) if gpu else 0.0
        plain = experiment.model_dump(mode="json")
        learner = tune.with_parameters(Learner, experiment=plain, run=run, fence=fence, gpu=gpu)
        given = tune.grid_search([(dict(arch), seed) for arch, seed in jobs])

        tuner = tune.Tuner(
            tune.with_resources(learner, {"cpu": 1, "gpu": share}),
            param_space={"job": given},
            tune_config=tune.TuneConfig(max_concurrent_trials=trials, reuse_actors=True),
            run_config=tune.RunConfig(
                name=f"fidelity-{fence.attempt}",
                storage_path=str(run.ray),
                verbose=0,
                callbacks=[Notes(fence, trained)],
                stop=Ending(fence),
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        )
        results = on_ray(tuner.fit, fence)
    errors = [str(error).strip().splitlines()[-1] for error in results.errors]
    return f"{len(errors)} of {len(jobs)} trainings failed, the last with: {errors[-1]}" if errors else ""
