"""Which predictor a guided search should have: rank correlation on unseen architectures, and what it then finds.

Run from the root of the repository:

    python -m tests.benchmarks.search_predictors
    python -m tests.benchmarks.search_predictors --tables tests/golden/tables/*

With tables of judged children (tests/benchmarks/tables.py) the correlations are with what was found of children that
the predictor has not seen, and the searches go over the table.

Seeds 0-2, mean ± standard deviation. On the synthetic space, before gains counted decades of cost:

| predictor | tau of 64 | tau of 200 | 100 | 250 | ms a candidate |
| --- | --- | --- | --- | --- | --- |
| ridge | 0.89 | 0.95 | 0.6825 ± 0.0016 | 0.6914 ± 0.0004 | 48 |
| ridge with pairs | 0.90 | 0.96 | 0.6817 ± 0.0008 | 0.6942 ± 0.0004 | 142 |
| gp rbf | 0.90 | 0.97 | 0.6825 ± 0.0014 | 0.6957 ± 0.0002 | 199 |
| gp rbf+linear | 0.90 | 0.97 | 0.6811 ± 0.0013 | 0.6956 ± 0.0005 | 240 |
| gp matern | 0.90 | 0.97 | 0.6802 ± 0.0034 | 0.6961 ± 0.0002 | 215 |

The others, and the default again, after that, and with half of the first candidates varied as a whole:

| predictor | tau of 64 | tau of 200 | 100 | 250 | ms a candidate |
| --- | --- | --- | --- | --- | --- |
| as it comes | 0.91 | 0.97 | 0.6889 ± 0.0012 | 0.6975 ± 0.0003 | 106 |
| ridge + gp | 0.90 | 0.96 | 0.6889 ± 0.0007 | 0.6956 ± 0.0001 | 85 |
| boosting | 0.65 | 0.79 | 0.6860 ± 0.0004 | 0.6920 ± 0.0003 | 305 |
| forest | 0.65 | 0.76 | 0.6824 ± 0.0013 | 0.6866 ± 0.0010 | 166 |
| extra trees | 0.41 | 0.58 | 0.6802 ± 0.0024 | 0.6853 ± 0.0009 | 162 |

On the tables of BigNAS, ViT-ResNAS and QuantNAS:

| predictor | tau of 64 | tau of 200 | 100 | 250 |
| --- | --- | --- | --- | --- |
| ridge | 0.56, 0.74, 0.76 | 0.63, 0.85, 0.83 | 0.988, 1.394, 1.121 | 1.027, 1.511, 1.234 |
| ridge with pairs | 0.58, 0.73, 0.76 | 0.74, 0.87, 0.87 | 1.016, 1.384, 1.140 | 1.064, 1.506, 1.265 |
| gp rbf | 0.59, 0.74, 0.77 | 0.75, 0.86, 0.87 | 1.041, 1.394, 1.159 | 1.077, 1.514, 1.255 |
| gp matern | 0.59, 0.74, 0.77 | 0.75, 0.86, 0.87 | 1.042, 1.389, 1.151 | 1.076, 1.499, 1.265 |
| ridge + gp | 0.58, 0.74, 0.77 | 0.72, 0.86, 0.86 | 1.015, 1.383, 1.135 | 1.061, 1.513, 1.259 |
| forest | 0.55, 0.80, 0.70 | 0.63, 0.86, 0.77 | 1.001, 1.410, 1.006 | 1.036, 1.484, 1.123 |
| extra trees | 0.31, 0.78, 0.65 | 0.48, 0.81, 0.71 | 0.994, 1.375, 1.013 | 1.008, 1.445, 1.138 |
| boosting | 0.52, 0.81, 0.70 | 0.66, 0.86, 0.79 | 1.020, 1.406, 1.102 | 1.064, 1.518, 1.224 |

(Standard deviations 0.001 to 0.03 at 250, up to 0.05 at 100; 35 to 70 ms a candidate, trees 120 to 300.)

The Gaussian process with the plainest kernel is the default: nowhere behind the best by more than the spread, and
clearly ahead of trees in two of three families.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, Matern, WhiteKernel
from sklearn.linear_model import BayesianRidge

from nas.search.guided import Guided
from nas.search.pareto import hypervolume
from nas.search.predictor import Predictor
from nas.space import Arch, Space
from tests.benchmarks import search_tables
from tests.benchmarks.search_synthetic import volumes
from tests.benchmarks.search_tables import proposals
from tests.benchmarks.tables import Table
from tests.synthetic import OBJECTIVE, SPACE, accuracy, cost

COUNTS = 64, 200  # architectures that a predictor is fitted on


class Trees:
    """A forest, whose trees differ by as much as it is uncertain."""

    def __init__(self, kind: Callable[..., Any]) -> None:
        self.forest = kind(200, min_samples_leaf=2, random_state=0)

    def fit(self, rows: np.ndarray, values: np.ndarray) -> Trees:
        self.forest.fit(rows, values)
        return self

    def predict(self, rows: np.ndarray, return_std: bool) -> tuple[np.ndarray, np.ndarray]:
        each = np.stack([tree.predict(rows) for tree in self.forest.estimators_])
        return each.mean(0), each.std(0)


class Boosted:
    """Gradient boosting: some of it on resampled rows."""

    def fit(self, rows: np.ndarray, values: np.ndarray) -> Boosted:
        rng = np.random.default_rng(0)
        self.models = []
        for seed in range(5):
            drawn = rng.integers(len(rows), size=len(rows))
            model = HistGradientBoostingRegressor(max_iter=100, min_samples_leaf=5, random_state=seed)
            self.models.append(model.fit(rows[drawn], values[drawn]))
        return self

    def predict(self, rows: np.ndarray, return_std: bool) -> tuple[np.ndarray, np.ndarray]:
        each = np.stack([model.predict(rows) for model in self.models])
        return each.mean(0), each.std(0)


class Both:
    """Some together, whose spread counts too."""

    def __init__(self, *models: Any) -> None:
        self.models = models

    def fit(self, rows: np.ndarray, values: np.ndarray) -> Both:
        for model in self.models:
            model.fit(rows, values)
        return self

    def predict(self, rows: np.ndarray, return_std: bool) -> tuple[np.ndarray, np.ndarray]:
        means, deviations = zip(*(model.predict(rows, return_std=True) for model in self.models), strict=True)
        mean = np.mean(means, axis=0)
        return mean, np.sqrt(np.mean(np.square(deviations), axis=0) + np.var(means, axis=0))


def gp(kernel: Any) -> GaussianProcessRegressor:
    return GaussianProcessRegressor(kernel + WhiteKernel(0.1, (1e-6, 10.0)), normalize_y=True, random_state=0)


MODELS: dict[str, Callable[[], Any] | None] = {
    "as it comes": None,
    "ridge": BayesianRidge,
    "ridge with pairs": lambda: gp(ConstantKernel(0.1) * DotProduct(1.0) + ConstantKernel(0.01) * DotProduct(1.0) ** 2),
    "forest": lambda: Trees(RandomForestRegressor),
    "extra trees": lambda: Trees(ExtraTreesRegressor),
    "boosting": Boosted,
    "gp rbf": lambda: gp(ConstantKernel(1.0) * RBF(3.0, (0.3, 100.0))),
    "gp rbf+linear": lambda: gp(ConstantKernel(1.0) * RBF(3.0, (0.3, 100.0)) + ConstantKernel(0.1) * DotProduct(1.0)),
    "gp matern": lambda: gp(ConstantKernel(1.0) * Matern(3.0, (0.3, 100.0), nu=2.5)),
    "ridge + gp": lambda: Both(BayesianRidge(), gp(ConstantKernel(1.0) * RBF(3.0, (0.3, 100.0)))),
}


def with_model(model: Callable[[], Any] | None) -> type[Guided]:
    """A guided search with another regressor."""

    class Other(Predictor):
        def model(self, rows: np.ndarray, values: np.ndarray) -> Any:
            return super().model(rows, values) if model is None else model().fit(rows, values)

    class Search(Guided):
        def _predictor(self) -> Predictor:
            return Other(self.space)

    return Search


def correlation(
    model: Callable[[], Any] | None, archs: Sequence[Arch], values: np.ndarray, space: Space, count: int
) -> float:
    """Kendall's tau with the metrics of `archs` beyond the first `count`, which it is fitted on."""
    predictor = with_model(model)(space, cost, OBJECTIVE)._predictor().fit(archs[:count], values[:count, None])
    return float(kendalltau(predictor(archs[count:])[0][:, 0], values[count:]).statistic)


def drawn(table: Table | None, seed: int) -> tuple[list[Arch], np.ndarray]:
    """Random architectures and their metrics."""
    rng = np.random.default_rng(seed)
    if table is None:
        archs = [SPACE.sample(rng) for _ in range(700)]
        return archs, np.array([accuracy(arch) for arch in archs])
    archs = list(table.figures)
    archs = [archs[at] for at in rng.permutation(len(archs))]
    return archs, np.array([table.figures[arch][0] for arch in archs])


def found(kind: type[Guided], table: Table | None, options: Any, seed: int, marks: list[int]) -> list[float]:
    """Hypervolume at these numbers of evaluations."""
    if table is None:
        return volumes(kind(SPACE, cost, OBJECTIVE, options=options, seed=seed), marks)
    searched = kind(table.space, table.cost, table.objective, options=options, seed=seed)
    archs = proposals(searched, table, max(marks))
    return [hypervolume(table.scaled(archs[:mark]), search_tables.REFERENCE) for mark in marks]


def main() -> None:
    """Print a table for each problem."""
    parser = argparse.ArgumentParser(description="Predictors of a guided search.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--marks", type=int, nargs="+", default=[100, 250])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--options", nargs="*", default=[], help="of the search, as every=8")
    parser.add_argument("--tables", type=Path, nargs="*", help="of judged children, in place of the synthetic problem")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # kernels at the end of their range
    options = Guided.Options(**dict(each.split("=") for each in args.options))
    for path in args.tables or [None]:
        table = Table.read(path) if path else None
        space = table.space if table else SPACE
        print(f"\n{path.name.partition('.')[0] if path else 'synthetic'}\n")
        heads = [*(f"tau of {n}" for n in COUNTS), *map(str, args.marks), "ms a candidate"]
        print("| predictor | " + " | ".join(heads) + " |\n" + "| --- " * (len(heads) + 1) + "|")
        for name in args.models:
            taus = [
                float(np.mean([correlation(MODELS[name], *drawn(table, seed), space, n) for seed in args.seeds]))
                for n in COUNTS
            ]
            began = time.perf_counter()
            kind = with_model(MODELS[name])
            each = np.array([found(kind, table, options, seed, args.marks) for seed in args.seeds])
            took = (time.perf_counter() - began) / len(args.seeds) / max(args.marks) * 1000
            print(search_tables.row(name, each, *(f"{tau:.2f}" for tau in taus)) + f" {took:.0f} |", flush=True)


if __name__ == "__main__":
    main()
