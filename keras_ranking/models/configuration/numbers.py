"""How numbers enter a model: as they are, or as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from keras_ranking.columns import Number
from keras_ranking.layers.embedding.numeric_embedding import KINDS, check_numeric
from keras_ranking.schema import Schema


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Vectors for the numbers of events and candidates, see `NumericEmbedding`; by default numbers are read as they are.

    An event and a candidate read a number by the same weights. The kinds are *stated* (2203.05556); the defaults of width and activation
    are a start that the authors' package names; the others, and what the vectors join, are our choice. Without it, scores are as before.

    Attributes:
        number_embedding: 'piecewise_linear', 'periodic' or 'linear'; None: numbers are read as they are.
        number_columns: numbers among the columns that the model reads, and actions; None: with 'piecewise_linear' those that have `bins`
            in the schema, actions too; else all features that are numbers.
        number_width: width of a number's vector; None: its encoding alone, for 'piecewise_linear' and 'periodic'.
        number_activation: of the vectors, such as 'relu'; None: none.
        number_frequencies: for 'periodic': frequencies of each number.
        number_sigma: for 'periodic': standard deviation of the first frequencies.
        number_plain: whether the number itself stays, next to its vector.

    Raises:
        ValueError: an unknown kind, sizes that are not positive, options without effect, or, when the model is built, columns that are no
            numbers of the model, and, with 'piecewise_linear', numbers without `bins` or without fitted edges.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.binned(8, ["age_hours"]).fit(log.events)
        >>> numbers = kr.models.Numbers(number_embedding="piecewise_linear", number_width=4)
        >>> kr.models.CADET(schema, numbers, dim=16, num_layers=1, num_heads=2).arguments["number_columns"]
        ['age_hours']
    """

    number_embedding: str | None = None
    number_columns: Sequence[str] | None = None
    number_width: int | None = 8
    number_activation: str | None = None
    number_frequencies: int = 16
    number_sigma: float = 0.1
    number_plain: bool = False

    def __post_init__(self) -> None:
        if self.number_embedding is None:
            given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
            if given:
                raise ValueError(f"`{given[0]}` has no effect without `number_embedding`. Received: number_embedding=None")
            return
        if self.number_embedding not in KINDS:
            raise ValueError(f"`number_embedding` must be one of {KINDS}, or None. Received: number_embedding={self.number_embedding!r}")
        check_numeric(self.number_embedding, self.number_width, self.number_frequencies, self.number_sigma, self.number_activation)

    @property
    def embeds(self) -> bool:
        """Whether any number has a vector."""
        return self.number_embedding is not None

    def of(self, schema: Schema, *read: Sequence[str] | None) -> Numbers:
        """The same with columns written out.

        Args:
            schema: the log's columns.
            read: names of the features and actions that the model reads.

        Raises:
            ValueError: a column that the model does not read, or that is no number; bins or edges that are missing.
        """
        if not self.embeds:
            return self
        names = {name for part in read for name in part or ()}
        columns = (*schema.features, *schema.actions)
        numbers = {column.name: column for column in columns if isinstance(column, Number) and column.name in names}
        features = {column.name for column in schema.features}
        binned = self.number_embedding == "piecewise_linear"
        if self.number_columns is not None:
            chosen = list(self.number_columns)
            if unknown := [name for name in chosen if name not in numbers]:
                raise ValueError(f"`number_columns` must be numbers that the model reads, of {list(numbers)}. Received: {unknown}")
        else:
            chosen = [name for name, column in numbers.items() if (column.bins is not None if binned else name in features)]
        if binned:
            without = [name for name in (chosen or numbers) if numbers[name].bins is None]
            if without:
                raise ValueError(
                    f"number_embedding='piecewise_linear' needs numbers with bins: Number('{without[0]}', bins=16), or `schema.binned(16)` "
                    f"and `schema.fit(training_rows)`; in a training `number_bins=16`. Received: {without} without bins"
                )
            if unfitted := [name for name in chosen if numbers[name].edges is None]:
                raise ValueError(f"the bins of {unfitted} have no edges yet: call `schema = schema.fit(training_rows)` first.")
        if not chosen:
            raise ValueError("`number_embedding` needs at least one number that the model reads. Received: none")
        return replace(
            self,
            number_columns=chosen,
            number_width=None if self.number_width is None else int(self.number_width),
            number_frequencies=int(self.number_frequencies),
            number_sigma=float(self.number_sigma),
            number_plain=bool(self.number_plain),
        )

    def embedded(self, features: Sequence[Any]) -> list[Any]:
        """Those of some features that have a vector."""
        return [feature for feature in features if feature.name in (self.number_columns or ())]

    def plain(self, features: Sequence[Any]) -> list[Any]:
        """Those of some features that are read as they are."""
        return [feature for feature in features if self.number_plain or feature not in self.embedded(features)]

    def concat_options(self, features: Sequence[Any], plain: bool | None = None) -> dict[str, Any]:
        """Arguments of a `FeatureConcat`, or of a layer that has one, for some features; none where no feature has a vector."""
        names = [feature.name for feature in self.embedded(features)]
        if not names:
            return {}
        made = {name: getattr(self, f"number_{name}") for name in ("width", "activation", "frequencies", "sigma")}
        keep = self.number_plain if plain is None else plain
        return {"numbers": {"kind": self.number_embedding, **made, "columns": names, "plain": keep}}
