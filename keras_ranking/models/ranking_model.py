"""RankingModel: one set of layers, three functional graphs (row, encode, score), rebuilt from its schema and arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ranking.layers.embedding.quantized_embedding import quantized_tables
from keras_ranking.losses import InRequestChoice, ObservedTowerLoss, ObservedValueLoss
from keras_ranking.losses.reduction import PackedLoss
from keras_ranking.models.graph import Graph, picked
from keras_ranking.models.keras_model.compiled_ranker import CompiledRanker
from keras_ranking.models.keras_model.growing_caches import GrowsCaches
from keras_ranking.models.keras_model.int8_layers import QuantizesLayers, int8_layers, restore_int8
from keras_ranking.models.served_values import HasUtility, check_kinds, served_value
from keras_ranking.models.stream_inputs import RunsStreams
from keras_ranking.models.table_steps import TableSteps
from keras_ranking.models.wiring import (
    BUILDERS,
    BuilderCall,
    HasHeads,
    Tensors,
    UntrackedGraphs,
    Wiring,
    freeze_parts,
    frozen_parts,
    saved_arguments,
)
from keras_ranking.ops.integers import as_tensor
from keras_ranking.ops.replicas import refuse_replicas
from keras_ranking.schema import Schema


@keras.saving.register_keras_serializable(package="keras_ranking")
class RankingModel(HasHeads, HasUtility, GrowsCaches, RunsStreams, TableSteps, QuantizesLayers, CompiledRanker):
    """A functional `keras.Model` for training, with the two phases of serving over the same weights.

    * the model itself: packed rows (or requests, see `form`) -> logits (B, T, K) by task, for `fit`, `evaluate`, `predict`;
    * `encode(history) -> cache` and `score(cache, candidates) -> logits`: the history once, then any candidates;
    * `serving_model`: their composition, request -> probabilities; what is exported.

    Made by the functions of `keras_ranking.models`; saved with `model.save("model.keras")` as schema, arguments and weights.

    Attributes:
        schema: the `Schema` the inputs are named by.
        arguments: what the builder was called with.
        form: what it is trained on: 'rows' (`PackedDataset`) or 'requests' (`PackedRequests`).
        boundaries: highest position of each tower but the last; () for a model without towers by position.
        serving_tower: tower whose probability is the score, where no mixture is.
        quantized: whether its embedding tables are in int8, see `kr.serving.quantize_embeddings`.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> model = kr.models.CADET(schema, dim=16, num_layers=1, num_heads=2)
        >>> found = kr.data.requests(log.events, schema, max_history=16)
        >>> tensors = found.tensors([0, 1], list(model.serving_model.input))
        >>> cache = model.encode(tensors)
        >>> model.score(cache, tensors)["click"].shape[0]
        2
    """

    def __init__(self, wiring: Wiring, builder: str, schema: Schema, arguments: Mapping[str, Any], name: str) -> None:
        # A process of torch may score alone; its losses refuse to be trained together.
        if keras.backend.backend() == "tensorflow":
            reason = "losses, clipped gradients and batch moments are of one replica's part, and `predict_on_batch` repeats rows"
            refuse_replicas(builder, reason)
        check_kinds(schema, arguments)
        inputs = wiring.row_inputs()
        super().__init__(inputs=inputs, outputs=wiring.row(inputs), name=name)
        self._graphs = UntrackedGraphs(wiring)
        self._builder_call = BuilderCall.of(builder, schema, arguments)

    @property
    def schema(self) -> Schema:
        return self._builder_call.schema

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self._builder_call.arguments)

    @property
    def form(self) -> str:
        return self._graphs.wiring.form

    @property
    def boundaries(self) -> tuple[int, ...]:
        return tuple(getattr(self._graphs.wiring, "boundaries", self._builder_call.arguments.get("tower_boundaries", ())))

    @property
    def tower_by(self) -> str | None:
        """The column that the towers go by; None: the position, or no towers."""
        return self._builder_call.arguments.get("tower_by")

    @property
    def serving_tower(self) -> int:
        return int(getattr(self._graphs.wiring, "serving_tower", self._builder_call.arguments.get("serving_tower", 0)))

    def served(self, towers: Any) -> Any:
        """The score that serving returns of probabilities by tower: (..., K) -> (...), arrays and tensors alike."""
        prior = self._builder_call.arguments.get("tower_prior")
        if prior is None:
            return towers[..., self.serving_tower]
        return sum(share * towers[..., k] for k, share in enumerate(prior))

    @property
    def quantized(self) -> bool:
        return self._builder_call.quantized

    @property
    def input_columns(self) -> list[str]:
        """Names of the inputs of the training graph, for `PackedDataset(inputs=...)` or `PackedRequests(names=...)`."""
        return list(self._graphs.wiring.row_inputs())

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks the model is trained on, for `PackedDataset(tasks=...)`: those it scores, and auxiliary ones."""
        return [*self._builder_call.arguments["tasks"], *self.auxiliary_tasks]

    @property
    def auxiliary_tasks(self) -> dict[str, float]:
        """Tasks that are trained but not scored, with the weight of their loss."""
        return dict(self._builder_call.arguments.get("auxiliary_tasks") or {})

    @property
    def auxiliary(self) -> dict[str, tuple[str, float]]:
        """Outputs of the training graph that learn the labels of a task next to its own: name -> (task, weight of the loss)."""
        return dict(getattr(self._graphs.wiring, "auxiliary", {}))

    @property
    def choice(self) -> list[str]:
        """Tasks whose outputs are log-odds of a choice of one candidate of a request, or none; see `Choice`."""
        return list(self._builder_call.arguments.get("choice") or ())

    def losses_by_task(self, **settings: Any) -> dict[str, PackedLoss]:
        """The loss of each task, for `compile(loss=...)`: `InRequestChoice` for those in `choice`, `ObservedValueLoss` for numbers,
        `ObservedTowerLoss` for others.

        Args:
            settings: of `ObservedTowerLoss`, with this model's towers. `InRequestChoice`, which compares a list already, and
                `ObservedValueLoss` take only `dtype`.
        """
        settings = {**getattr(self._graphs.wiring, "loss_settings", {}), **settings}
        losses: dict[str, PackedLoss] = {task: ObservedTowerLoss(boundaries=self.boundaries, **settings) for task in self.tasks}
        for task in (self.schema.task(name) for name in self.tasks):
            if task.kind == "number":
                delta = task.delta if task.loss == "huber" else None
                losses[task.name] = ObservedValueLoss(self.boundaries, delta, dtype=settings.get("dtype"))
        several = self._builder_call.arguments.get("choice_several", "refuse")
        return losses | {task: InRequestChoice(several, dtype=settings.get("dtype")) for task in self.choice}

    # -- the two phases --------------------------------------------------------------------------------------------------

    @property
    def encoder(self) -> keras.Model:
        """Functional model: `history_*` -> cache (a dict of tensors, batch first).

        Raises:
            ValueError: the model reads no history.
        """

        def build() -> keras.Model:
            inputs = self._graphs.wiring.history_inputs()
            if not inputs:
                raise ValueError(f"the model '{self.name}' reads no history: there is nothing to encode.")
            return Graph(inputs, self._graphs.wiring.encode(inputs), name=f"{self.name}_encoder")

        return self._graphs.get("encoder", build)

    @property
    def scorer(self) -> keras.Model:
        """Functional model: cache and `candidate_*`, `request_time` -> logits (B, N, K) by task."""

        def build() -> keras.Model:
            wiring = self._graphs.wiring
            kept = self.encoder.output if wiring.history_inputs() else {}
            cache = {name: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=f"cache_{name}") for name, x in kept.items()}
            candidates = wiring.candidate_inputs()
            named = {f"cache_{name}": x for name, x in cache.items()} | candidates
            return Graph(named, wiring.score(cache, candidates), name=f"{self.name}_scorer")

        return self._graphs.get("scorer", build)

    @property
    def serving_model(self) -> keras.Model:
        """Functional model: serving tensors -> probabilities, or what `Task` says of other kinds.

        Outputs: `<task>` float32 (B, N), the value at `serving_tower` or a mixture of all (`served`); with K > 1 towers by position also
        `<task>_by_position` (B, N, K), with towers by another column `<task>_by_<column>`; with a `utility` also `score` (B, N). Zero
        beyond `candidate_count`.
        """

        def build() -> keras.Model:
            from keras_ranking.layers import KeepFirst

            wiring = self._graphs.wiring
            history = wiring.history_inputs()
            # What both phases read, such as the time of the request, is one input.
            candidates = {**wiring.candidate_inputs(), **{name: x for name, x in history.items() if not name.startswith("history_")}}
            count = candidates.pop("candidate_count", None)
            count = keras.Input((), dtype="int32", name="candidate_count") if count is None else count
            keep = KeepFirst(name="keep_candidates")
            clean = {name: keep(x, length=count) if name.startswith("candidate_") else x for name, x in candidates.items()}
            if "candidate_count" in wiring.candidate_inputs():
                clean["candidate_count"] = count
            moment = {"request_time": clean["request_time"]} if getattr(wiring, "encodes_at_moment", False) else {}
            outputs = self.probabilities(wiring.score(wiring.encode({**history, **moment}), clean), count)
            return Graph({**history, **candidates, "candidate_count": count}, outputs, name=f"{self.name}_serving")

        return self._graphs.get("serving", build)

    def probabilities(self, logits: Mapping[str, Any], count: Any) -> Tensors:
        """What serving returns of the logits of `score`, see `serving_model`; `count` int32 (B,): candidates that are real."""
        from keras_ranking.layers import KeepFirst

        keep, outputs = KeepFirst(name="keep_scores"), {}
        for task, value in logits.items():
            towers = keep(served_value(self.schema.task(task), value), length=count)
            outputs[task] = self.served(towers)
            if self.boundaries and getattr(self._graphs.wiring, "returns_towers", True):
                outputs[f"{task}_by_{self.tower_by or 'position'}"] = towers
        return self.with_score(outputs)

    def encode(self, history: Mapping[str, Any]) -> Tensors:
        """Read histories once.

        Args:
            history: `history_<name>` (B, L[, size]), `history_time` int32 (B, L), `history_length` int32 (B,), oldest first; and
                `request_time` int32 (B,) where the model's cache is of one moment (`encoder.input` says).

        Returns:
            The cache, which `score` takes: for attention, per layer keys and values, gated and rotated, and their times; else none.
        """
        if not self._graphs.wiring.history_inputs():
            return {}
        return dict(self.encoder(picked(history, self.encoder)))

    def score(self, cache: Mapping[str, Any], candidates: Mapping[str, Any]) -> Tensors:
        """Score candidates against encoded histories.

        Args:
            cache: from `encode`.
            candidates: `candidate_<name>` (B, N[, size]) and `request_time` int32 (B,); for a model that reads the list (set-wise layers,
                `list_context`, `list_pooling`, `choice`) also `candidate_count` int32 (B,), without which all count.

        Returns:
            Logits float32 (B, N, K) by task.
        """
        named = {f"cache_{name}": x for name, x in cache.items()} | dict(candidates)
        if "candidate_count" in self.scorer.input and "candidate_count" not in named:
            lead = next(x.shape[:2] for name, x in candidates.items() if name.startswith("candidate_"))
            named["candidate_count"] = np.full(lead[0], lead[1], dtype=np.int32)
        return dict(self.scorer(picked(named, self.scorer)))

    @property
    def explore_model(self) -> keras.Model | None:
        """Functional model: serving tensors and `seed` int32 (B,) -> probabilities under weights drawn from their posterior.

        None for a model made without exploration.
        """
        explore = getattr(self._graphs.wiring, "explore", None)
        if explore is None or not self._builder_call.arguments.get("explore"):
            return None

        def build() -> keras.Model:
            graph = explore(f"{self.name}_explore")
            return Graph(graph.input, self.with_score(graph.output), name=graph.name) if self.utility else graph

        return self._graphs.get("explore", build)

    @property
    def last_inputs(self) -> keras.Model:
        """Functional model: inputs of training -> what the last linear map of each task reads, (B, T, H).

        Raises:
            ValueError: the model does not say.
        """
        read = getattr(self._graphs.wiring, "last_inputs", None)
        if read is None:
            raise ValueError(f"the model '{self.name}' does not give the inputs of its last layers.")

        def build() -> keras.Model:
            inputs = self._graphs.wiring.row_inputs()
            return Graph(inputs, read(inputs), name=f"{self.name}_last_inputs")

        return self._graphs.get("last_inputs", build)

    def last_layers(self, kind: str) -> dict[str, Any]:
        """Layers by task that are fitted after training: `kind` is 'posteriors' (`BayesianLinear`) or 'effects' (`RandomEffect`).

        Empty for a model that was made without.
        """
        return dict(getattr(self._graphs.wiring, kind, {}))

    def attention(self, cache: Mapping[str, Any], candidates: Mapping[str, Any]) -> np.ndarray:
        """Which past events each candidate attends to: softmax weights, mean over heads, by block.

        Args:
            cache, candidates: as for `score`.

        Raises:
            ValueError: the model has no attention of candidates over cached events.

        Returns:
            float32 (blocks, B, N, L): the weight on each event, its tokens together. What is missing to 1 is that on the candidate.
        """
        names = [name for name in self._graphs.wiring.candidate_inputs() if name != "candidate_count"]
        tensors = {name: as_tensor(candidates[name]) for name in names}
        blocks = []
        for weights in self._graphs.wiring.attention(dict(cache), tensors):
            mean = np.asarray(keras.ops.convert_to_numpy(weights)).mean(axis=1)[..., :-1]
            blocks.append(mean.reshape(*mean.shape[:2], cache["time"].shape[1], -1).sum(axis=-1))
        return np.stack(blocks)

    def forget_graphs(self) -> None:
        """Drop the graphs of serving and their compiled programs; they are built again where they are used."""
        self._graphs.built.clear()

    # -- saving ----------------------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        call = self._builder_call
        return {
            "builder": call.builder,
            "schema": call.schema.model_dump(mode="json"),
            "arguments": call.arguments,
            "quantized": call.quantized,
            "name": self.name,
            **({"frozen": frozen} if (frozen := frozen_parts(self.layers)) else {}),
            **({"int8": paths} if (paths := int8_layers(self)) else {}),
            **({"utility": self.utility} if self.utility else {}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> RankingModel:
        if config["builder"] not in BUILDERS:
            raise ValueError(f"unknown model '{config['builder']}'. This version has: {sorted(BUILDERS)}")
        with quantized_tables() if config.get("quantized") else contextlib.nullcontext():
            build, schema = BUILDERS[config["builder"]], Schema.model_validate(config["schema"])
            model: RankingModel = build(schema, **saved_arguments(config["arguments"]), name=config["name"])
        restore_int8(model, config.get("int8", ()))
        list(freeze_parts(model.layers, config.get("frozen", ())))
        model.utility = config.get("utility")
        return model


def load(path: str | Path) -> RankingModel:
    """Load a trained model.

    Args:
        path: a `.keras` file, or a folder with a `model.keras` in it, as `kr.training.train` writes it.

    Returns:
        The model, not compiled.

    Raises:
        ValueError: nothing there, or not a model of this package.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> model = kr.models.CADET(log.schema.fit(log.events), dim=16, num_layers=1, num_heads=2)
        >>> model.save("model.keras")
        >>> kr.models.load("model.keras").arguments == model.arguments
        True
    """
    file = Path(path)
    file = file / "model.keras" if file.is_dir() else file
    if not file.is_file():
        raise ValueError(f"no model at '{path}': expected a folder with a model.keras in it, or a .keras file.")
    model = keras.saving.load_model(file, compile=False)
    if not isinstance(model, RankingModel):
        raise ValueError(f"'{file}' is a {type(model).__name__}, not a ranking model of this package.")
    return model
