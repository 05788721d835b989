"""What `simulate` plants, in small frozen classes that check themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SimulatedItems:
    """The items of a simulated feed.

    Attributes:
        items_per_day: new items a day; an item can be shown for three days.
        topics: number of topics.
        authors: number of authors, at least `topics`; an author writes on one topic.

    Raises:
        ValueError: a number below 1, or fewer authors than topics.

    Example:
        >>> kr.data.SimulatedItems(items_per_day=200).topics
        6
    """

    items_per_day: int = 80
    topics: int = 6
    authors: int = 64

    def __post_init__(self) -> None:
        for name in ("items_per_day", "topics", "authors"):
            positive(name, getattr(self, name))
        if self.authors < self.topics:
            raise ValueError(f"`authors` must be at least `topics`, so that each topic has one. Received: authors={self.authors}")


@dataclass(frozen=True, kw_only=True)
class SimulatedLists:
    """The lists that are shown, and how positions are examined.

    Attributes:
        list_size: smallest and largest number of items of a request.
        examination: probability that a position is examined, per bucket.
        boundaries: upper bounds of the position buckets; (1, 4) = first, 2 to 4, 5 and below.
        random_share: share of requests that are shuffled uniformly instead of ranked by the policy.
        shuffled_share: share of sessions, drawn by the seed, all of whose requests are shuffled uniformly. Above 0 the events and
            the schema have a column `is_shuffled` (1 in those sessions, known after scoring: never an input). All other
            sessions have the items, order and actions that the same seed gives without it.

    Raises:
        ValueError: sizes out of order, boundaries that do not increase, a share or a probability outside its range.

    Example:
        >>> kr.data.SimulatedLists(list_size=(5, 20), random_share=0.1).boundaries
        (1, 4)
    """

    list_size: tuple[int, int] = (10, 12)
    examination: Sequence[float] = (1.0, 0.65, 0.45)
    boundaries: Sequence[int] = (1, 4)
    random_share: float = 0.5
    shuffled_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("random_share", "shuffled_share"):
            share(name, getattr(self, name))
        if not 1 <= self.list_size[0] <= self.list_size[1]:
            received = f"list_size={self.list_size}"
            raise ValueError(f"`list_size` must be (smallest, largest) with 1 <= smallest <= largest. Received: {received}")
        bounds = list(self.boundaries)
        if bounds != sorted(set(bounds)) or (bounds and bounds[0] < 1):
            raise ValueError(f"`boundaries` must be increasing positions >= 1. Received: boundaries={self.boundaries}")
        chances = [float(chance) for chance in self.examination]
        if len(chances) != len(bounds) + 1 or not all(0 < chance <= 1 for chance in chances):
            stated = f"one chance in (0, 1] for each of the {len(bounds) + 1} buckets"
            raise ValueError(f"`examination` must hold {stated}. Received: examination={chances}")


@dataclass(frozen=True, kw_only=True)
class SimulatedTastes:
    """What members like, in logits.

    Attributes:
        taste_scale: standard deviation of a member's taste for a topic.
        drift: share of a taste's variance that is renewed every day.
        freshness: logits lost for each day of an item's age.
        mood_scale: standard deviation of a session's mood.

    Raises:
        ValueError: a share outside [0, 1].

    Example:
        >>> kr.data.SimulatedTastes(drift=0.2).taste_scale
        2.0
    """

    taste_scale: float = 2.0
    drift: float = 0.03
    freshness: float = 0.3
    mood_scale: float = 0.5

    def __post_init__(self) -> None:
        share("drift", self.drift)


def positive(name: str, value: float) -> None:
    """Refuse what is not a positive integer."""
    if int(value) != value or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value}")


def share(name: str, value: float) -> None:
    """Refuse what is not between 0 and 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be between 0 and 1. Received: {name}={value}")
