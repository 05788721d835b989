"""Which settings are tried next, and which trials end early: samplers and pruners of Optuna by name.

A sampler is made for each trial, with a seed that follows from the study's seed and the number of the trial: a worker that starts anew,
or beside another one, does not draw settings that were drawn before.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Mapping
from typing import Any

SAMPLERS = ("tpe", "random", "gp", "gp-noisy", "cmaes", "grid")
PRUNERS = ("none", "median", "hyperband")
STARTUP = 10
"""Trials with random settings before `tpe`, `gp`, `gp-noisy` and `cmaes` look at results."""
_NEEDS = {
    "gp": (("torch", "torch"), ("scipy", "data")),
    "cmaes": (("cmaes", "tune"),),
    "gp-noisy": (("optuna_integration", "tune-gp"), ("botorch", "tune-gp")),
}


def check_search(sampler: str, pruner: str) -> None:
    """Check that there are such a sampler and such a pruner, that they go together, and that what the sampler needs is installed.

    Raises:
        ValueError: an unknown name, or a pruner with a sampler that it harms.
        ModuleNotFoundError: a package is missing, naming the extra.
    """
    for name, value, known in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if value not in known:
            raise ValueError(f"`{name}` must be one of {known}. Received: {name}={value!r}")
    if sampler in ("gp", "gp-noisy") and pruner != "none":
        raise ValueError(
            f"`pruner` must be 'none' with sampler={sampler!r}, which reads finished trials alone: what pruned trials have shown is "
            "lost to it, and it goes back to where they were (docs: What noise does to tuning). "
            f"Received: pruner={pruner!r}; sampler='tpe' reads pruned trials"
        )
    for module, extra in _NEEDS.get(sampler, ()):
        if importlib.util.find_spec(module) is None:
            text = f"sampler={sampler!r} needs {module}: pip install 'keras-ranking[{extra}]'"
            raise ModuleNotFoundError(text, name=module)


def sampler_for(name: str, seed: int, number: int, grid: Mapping[str, list[Any]] | None = None) -> Any:
    """The sampler for one trial.

    Args:
        name: one of `SAMPLERS`.
        seed: of the study.
        number: of the trial.
        grid: for 'grid': parameter -> values.
    """
    import optuna

    own = (seed * 1_000_003 + number) % 2**32
    with warnings.catch_warnings():  # of arguments that Optuna calls experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "grid":
            return optuna.samplers.GridSampler(dict(grid or {}), seed=seed % 2**32)
        if name == "random":
            return optuna.samplers.RandomSampler(seed=own)
        if name == "tpe":
            return optuna.samplers.TPESampler(seed=own, n_startup_trials=STARTUP, constant_liar=True, multivariate=True)
        if name == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=own, n_startup_trials=STARTUP, warn_independent_sampling=False)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=own, n_startup_trials=STARTUP, warn_independent_sampling=False)
        from optuna_integration import BoTorchSampler

        return BoTorchSampler(
            candidates_func=functools.partial(noisy_candidates, seed=own), n_startup_trials=STARTUP, seed=own, device=_cpu()
        )


def pruner_for(name: str) -> Any:
    """The pruner of a study: 'median' from the second epoch on, after five finished trials; 'hyperband' as Optuna has it."""
    import optuna

    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
    return optuna.pruners.HyperbandPruner(min_resource=1) if name == "hyperband" else optuna.pruners.NopPruner()


def _cpu() -> Any:
    import torch

    return torch.device("cpu")


def noisy_candidates(train_x: Any, train_obj: Any, _: Any, bounds: Any, pending_x: Any, seed: int = 0) -> Any:
    """One point of the largest log noisy expected improvement (qLogNEI), which does not take the best value that was seen for the best one.

    Ament et al., Unexpected Improvements to Expected Improvement, 2310.20708; Letham et al. 1706.07094, as BoTorch has them.
    """
    import torch
    from botorch.acquisition.logei import qLogNoisyExpectedImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.transforms import Standardize
    from botorch.optim.optimize import optimize_acqf
    from botorch.sampling.normal import SobolQMCNormalSampler
    from botorch.utils.transforms import normalize, unnormalize
    from gpytorch.mlls import ExactMarginalLogLikelihood

    inputs = normalize(train_x, bounds=bounds)
    model = SingleTaskGP(inputs, train_obj, outcome_transform=Standardize(m=train_obj.shape[-1]))
    with warnings.catch_warnings():  # of a fit that BoTorch tries again by itself
        warnings.simplefilter("ignore")
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        acquisition = qLogNoisyExpectedImprovement(
            model=model,
            X_baseline=inputs,
            sampler=SobolQMCNormalSampler(torch.Size([64]), seed=seed),
            X_pending=None if pending_x is None else normalize(pending_x, bounds=bounds),
            prune_baseline=True,
        )
        unit = torch.stack([torch.zeros_like(bounds[0]), torch.ones_like(bounds[0])])
        found, _ = optimize_acqf(
            acquisition, bounds=unit, q=1, num_restarts=4, raw_samples=64, options={"batch_limit": 4, "maxiter": 50, "seed": seed}
        )
    return unnormalize(found.detach(), bounds=bounds)
