"""Options of models and of training: for public logs and the simulated one, chosen on training days, and what the papers state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_ranking.data.readers.ebnerd import ebnerd_schema
from keras_ranking.schema import Schema

_EBNERD_REQUESTS: dict[str, Any] = {
    "features": tuple(feature.name for feature in ebnerd_schema().features if feature.kind != "id"),
    "pairwise_weight": 0.0,
    "listwise_weight": 0.1,
    "row_length": 256,
    "batch_size": 16,
}

# Presets for each log, chosen on its training days, of which the last was held out.
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    # Tastes depend on topics: with item and author ids in the tokens, a model overfits a log of this size. With actions in the
    # attention values, one block compares a candidate with earlier events and reads their actions.
    ("cadet", "simulated"): {
        "layout": "value",
        "token_features": ("topic", "age_hours", "editor_score"),
        "row_length": 256,
        "batch_size": 4,
        "epochs": 6,
        "learning_rate": 5e-3,
        "pairwise_weight": 0.02,
    },
    # News articles are shown for about a day: 82 to 90 % of the scored pairs have an article without training rows, so tokens have
    # no article id.
    ("cadet", "ebnerd"): {
        "token_features": ("article_age", "views_6h", "ctr_6h", "ctr_24h_rank", "seen"),
        "num_heads": 2,
        "tower_hidden": (128, 64),
        "row_length": 256,
        "batch_size": 16,
    },
    # The same trunk features for Feed-SR. On the simulated log one token per event, for the reason given above.
    ("feedsr", "simulated"): {
        "layout": "value",
        "rotate_by": "time",
        "token_features": ("topic", "age_hours", "editor_score"),
        "row_length": 256,
        "batch_size": 4,
        "epochs": 6,
        "learning_rate": 5e-3,
        "pairwise_weight": 0.02,
    },
    ("feedsr", "ebnerd"): {
        "token_features": ("article_age", "views_6h", "ctr_6h", "ctr_24h_rank", "seen"),
        "num_heads": 2,
        "head_options": {"hidden": (128, 64)},
        "row_length": 256,
        "batch_size": 16,
    },
    # The same for LiRank: no article id, and no history, which added nothing to the counts of the member's earlier events.
    ("lirank", "ebnerd"): {**_EBNERD_REQUESTS, "history_features": (), "calibration_options": {"step": 0.5}, "epochs": 8},
    # LiGR: all items of a list attend to each other. Lists have 5 to 100 items and one click, which depends on the whole list.
    ("ligr", "ebnerd"): {**_EBNERD_REQUESTS, "top_k": None, "history_features": (), "epochs": 5},
    ("amortized", "ebnerd"): {
        **_EBNERD_REQUESTS,
        "history_features": ("article_age",),
        "max_history": 30,
        "dim": 32,
        "num_heads": 2,
        "cross": "residual",
        "gate": "dense",
        "epochs": 5,
    },
}


PAPER = "paper"
# What the papers state or their digests quote; sizes and rates are not known, and those of the builders and of `TrainingOptions`.
PAPERS: dict[str, dict[str, Any]] = {
    # Gates of input, queries and keys, rotation by time, delayed actions, a tower a range of positions; pairs with a factor of our choice.
    "cadet": {
        "layout": "interleaved",
        "gates": "all",
        "rotate_by": "time",
        "mask": "delay",
        "towers": "separate",
        "pairwise_weight": 0.1,
        "listwise_weight": 0.0,
    },
    "feedsr": {
        "layout": "interleaved",
        "rotate_by": "index",
        "mask": "causal",
        "residual": "scalar",
        "head": "parallel_dcn",
        "serving_position": 5,
        "shuffle_sessions": "epoch",
        "ipw": "all",
        "position_half_life": "length",
        "age_half_life_days": 60.0,
        "schedule": "onecycle",
        "pairwise_weight": 0.0,
        "listwise_weight": 0.0,
    },
    # The feed ranker: a tower of clicks and one of contributions, each with layers of its own over the same columns.
    "lirank": {
        "preset": "feed",
        "shared_trunk": False,
        "table_optimizer": "adagrad",
        "pairwise_weight": 0.0,
        "listwise_weight": 0.0,
    },
    # Gated blocks, sessions masked, and one set-wise block of about ten items.
    "ligr": {
        "gate": True,
        "history_mask": "sessions",
        "setwise_layers": 1,
        "top_k": 10,
        "pairwise_weight": 0.0,
        "listwise_weight": 0.0,
    },
    "amortized": {
        "fusion": "append_cross",
        "cross": "low_rank",
        "calibration": False,
        "pairwise_weight": 0.0,
        "listwise_weight": 0.0,
    },
}


def preset_of(options: Mapping[str, Any], preset: str | None, schema: Schema) -> tuple[dict[str, Any], str | None]:
    """The preset that counts, and the options without its name: that of the log, or 'paper' where `options` has preset='paper'.

    Without positions in the log, the paper's preset does without the weights that are estimated from them; without a column of sessions,
    without a random order inside them.
    """
    if PAPER not in (options.get("preset"), preset):
        return dict(options), preset
    rest = {name: value for name, value in options.items() if name != "preset" or value != PAPER}
    without: dict[str, Any] = {"ipw": schema.position, "shuffle_sessions": schema.session}
    return {**{option: None for option, column in without.items() if column is None}, **rest}, PAPER


def preset_options(model: str, preset: str | None) -> dict[str, Any]:
    """Options of a preset for a model; {} where the preset has none for it.

    Raises:
        ValueError: an unknown preset.
    """
    if preset == PAPER:
        return PAPERS[model]
    known = sorted({name for _, name in PRESETS})
    if preset is not None and preset not in known:
        raise ValueError(f"`preset` of a log must be one of {known} or None. Received: preset={preset!r}")
    return PRESETS.get((model, preset or ""), {})
