"""Options of models and of training for the public logs and the simulated one, each chosen on its training days."""

from __future__ import annotations

from typing import Any

from keras_ranking.data.readers.ebnerd import ebnerd_schema

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


def preset_options(model: str, preset: str | None) -> dict[str, Any]:
    """Options of a preset for a model; {} where the preset has none for it.

    Raises:
        ValueError: an unknown preset.
    """
    known = sorted({name for _, name in PRESETS})
    if preset is not None and preset not in known:
        raise ValueError(f"`preset` of a log must be one of {known} or None. Received: preset={preset!r}")
    return PRESETS.get((model, preset or ""), {})
