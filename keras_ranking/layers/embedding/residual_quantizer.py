"""ResidualQuantizer: from item vectors to semantic ids, a few codes per item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import RefusesMask
from keras_ranking.ops.integers import at_most
from keras_ranking.ops.replicas import refuse_replicas

_UPDATES = ("ema", "straight_through")
_CELLS = 2**24  # numbers held at once for distances


@keras.saving.register_keras_serializable(package="keras_ranking")
class ResidualQuantizer(RefusesMask, keras.layers.Layer):
    """RQ-VAE: an autoencoder whose bottleneck is a sum of codewords, one per level; each level encodes the residual of the levels before.

        z = encoder(x),  r_1 = z
        code_l = argmin_c |r_l - C_lc|^2,   r_(l+1) = r_l - C_l,code_l,   q = sum_l C_l,code_l
        y = decoder(z + sg(q - z))                                        straight-through: gradients skip the bottleneck
        loss = mean (y - x)^2 + commitment * mean_l |r_l - sg(C_l,code_l)|^2  [+ mean_l |sg(r_l) - C_l,code_l|^2]

    Source: RQ-VAE (Lee et al., CVPR 2022), the semantic ids of TIGER (2305.05065). LiGR (2502.03417, v2) uses semantic ids (stated
    second-hand); its levels, codebooks and input vectors are unknown. Train it with `model.fit(vectors, vectors)` and any loss (or none,
    `compile(optimizer)`): its own losses are added. sg: stop gradient.

    A codeword that was nearest to no vector for `revive_after` steps is replaced by a random residual of the current batch. Before the
    first step this applies to all codewords, so the codebooks are initialised from the data. A vector that is not finite moves no
    codeword; the loss of its batch is not finite, as that of any Keras layer.

    Args:
        levels: number of codes per item.
        codebook_size: number of codewords per level.
        dim: width of codewords; None: that of the vectors.
        hidden: widths of the encoder's hidden layers; the decoder has the same in reverse order. Without `dim` and `hidden`, encoder and
            decoder are the identity, and this is plain residual quantisation.
        update: 'ema': codewords are running means of the residuals assigned to them (`decay`); 'straight_through': gradient descent.
        commitment: weight of the commitment loss.
        revive_after: steps; None: codewords are never replaced (one that is not used stays where it is), and codebooks start as small
            random numbers.
        activation: of hidden layers.
        seed: of the random choice of residuals.

    Call arguments:
        inputs: x (..., F).

    Output:
        y (..., F).

    Raises:
        ValueError: a size below 1, an unknown update, `decay` outside [0, 1).

    Example:
        >>> layer = kr.layers.ResidualQuantizer(levels=2, codebook_size=4)
        >>> vectors = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
        >>> _ = layer(vectors, training=True)
        >>> layer.encode(vectors).shape
        (32, 2)
    """

    mask_instead = "rows without padding, which would move its codewords,"

    def __init__(
        self,
        levels: int = 3,
        codebook_size: int = 256,
        dim: int | None = None,
        hidden: Sequence[int] = (),
        update: str = "ema",
        decay: float = 0.95,
        commitment: float = 0.25,
        revive_after: int | None = 20,
        activation: str = "silu",
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        sizes = {"levels": levels, "codebook_size": codebook_size, "dim": 1 if dim is None else dim}
        sizes |= {"revive_after": 1 if revive_after is None else revive_after}
        for name, value in (*sizes.items(), *(("hidden", width) for width in hidden)):
            if value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value}")
        if update not in _UPDATES:
            raise ValueError(f"`update` must be one of {_UPDATES}. Received: update={update!r}")
        if not 0 <= decay < 1 or commitment < 0:
            raise ValueError(f"`decay` must be in [0, 1) and `commitment` at least 0. Received: decay={decay}, commitment={commitment}")
        self.levels, self.codebook_size, self.dim, self.hidden = int(levels), int(codebook_size), dim, tuple(hidden)
        self.update, self.decay, self.commitment = update, float(decay), float(commitment)
        self.revive_after, self.activation, self.seed = revive_after, activation, int(seed)
        self.generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        features = int(input_shape[-1] or 0)
        width = self.dim or features
        plain = self.dim is None and not self.hidden

        def mlp(widths: Sequence[int], last: int, first: int, name: str) -> Any:
            stack = [keras.layers.Dense(w, self.activation, dtype=self.dtype_policy, name=f"{name}_{i}") for i, w in enumerate(widths)]
            stack.append(keras.layers.Dense(last, dtype=self.dtype_policy, name=f"{name}_out"))
            for layer, size in zip(stack, (first, *widths), strict=True):
                layer.build((None, size))
            return stack

        self.encoder = [] if plain else mlp(self.hidden, width, features, "encoder")
        self.decoder = [] if plain else mlp(self.hidden[::-1], features, width, "decoder")
        shape = (self.levels, self.codebook_size, width)
        learned = self.update == "straight_through"
        start = "zeros" if self.revive_after else keras.initializers.RandomNormal(stddev=0.1, seed=self.seed)

        def state(name: str, shape: tuple[int, ...], initializer: Any = "zeros", dtype: str = "float32") -> Any:
            return self.add_weight(name=name, shape=shape, initializer=initializer, trainable=False, dtype=dtype, autocast=False)

        # What a replacement sets. A codebook learned by gradient is this plus `shift`: only the optimizer may write a trainable weight.
        self.codebook = state("codebook", shape, start)
        self.shift = None
        if learned:
            self.shift = self.add_weight(name="shift", shape=shape, initializer="zeros", dtype="float32", autocast=False)
        else:
            self.mass = state("mass", shape[:2], "ones")
            self.sums = state("sums", shape, start)
        unused = keras.initializers.Constant(self.revive_after or 0)
        self.unused = state("unused", shape[:2], unused, "int32")
        self.built = True

    # -- the bottleneck --------------------------------------------------------------------------------------------------

    def _codewords(self, level: int) -> Any:
        base = self.codebook[level]
        return base if self.shift is None else base + self.shift[level]

    @staticmethod
    def _nearest(residual: Any, codewords: Any) -> Any:
        # Squares of differences: in |c|^2 - 2 r.c, codewords that are close to each other and far from 0 cancel. Some columns at a time,
        # so that no (rows, codewords, D) array is made. Ties: the first codeword.
        # Of numbers near 1, whatever the unit of the vectors: squares of 1e-25 and 1e25 are 0 and infinite in float32.
        unit = ops.max(ops.abs(codewords))
        unit = ops.where(unit > 0, unit, ops.ones_like(unit))
        residual, codewords = residual / unit, codewords / unit
        rows, (size, width) = residual.shape[0], codewords.shape
        columns = max(1, _CELLS // ((rows or 1024) * size))
        distance = 0.0
        for first in range(0, width, columns):
            part = slice(first, first + columns)
            distance = distance + ops.sum((residual[:, None, part] - codewords[None, :, part]) ** 2, axis=-1)
        return ops.cast(ops.argmin(distance, axis=-1), "int32")

    def _through(self, x: Any, stack: list[Any]) -> Any:
        for layer in stack:
            x = layer(x)
        return x

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        training = training and self.trainable  # a frozen codebook stays
        if training:
            refuse_replicas("ResidualQuantizer", "each replica would move the codewords by its own part of the batch", always=True)
        flat = ops.reshape(inputs, (-1, inputs.shape[-1]))
        z = ops.cast(self._through(flat, self.encoder), "float32")
        residual, total = z, ops.zeros_like(z)
        commitment, codebook = 0.0, 0.0
        books, masses, sums, idle = [], [], [], []
        for level in range(self.levels):
            words = self._codewords(level)
            if training:
                words, kept = self._revived(level, words, ops.stop_gradient(residual))
            code = self._nearest(ops.stop_gradient(residual), ops.stop_gradient(words))
            chosen = ops.take(words, code, axis=0)
            commitment = commitment + ops.mean((residual - ops.stop_gradient(chosen)) ** 2)
            if self.shift is not None:
                codebook = codebook + ops.mean((ops.stop_gradient(residual) - chosen) ** 2)
            if training:
                book, mass, total_sum, unused = self._counted(kept, code, ops.stop_gradient(residual))
                books.append(book)
                masses.append(mass)
                sums.append(total_sum)
                idle.append(unused)
            chosen = ops.stop_gradient(chosen)
            residual, total = residual - chosen, total + chosen
        if training:
            self.codebook.assign(ops.stack(books))
            self.unused.assign(ops.stack(idle))
            if self.shift is None:
                self.mass.assign(ops.stack(masses))
                self.sums.assign(ops.stack(sums))
        y = self._through(ops.cast(z + ops.stop_gradient(total - z), self.compute_dtype), self.decoder)
        self.add_loss(ops.mean((ops.cast(y, "float32") - ops.cast(flat, "float32")) ** 2))
        self.add_loss((self.commitment * commitment + codebook) / self.levels)
        return ops.reshape(y, ops.shape(inputs))

    def _revived(self, level: int, words: Any, residual: Any) -> tuple[Any, tuple[Any, ...]]:
        """Codewords with unused ones replaced, and their state."""
        book, unused = self.codebook[level], self.unused[level]
        mass = None if self.shift is not None else self.mass[level]
        sums = None if self.shift is not None else self.sums[level]
        if self.revive_after:
            dead = unused >= self.revive_after
            pick = keras.random.uniform((self.codebook_size,), seed=self.generator)
            rows = ops.shape(residual)[0]
            index = at_most(ops.cast(pick * ops.cast(rows, "float32"), "int32"), rows - 1)
            fresh = ops.take(residual, index, axis=0)
            dead = ops.logical_and(dead, ops.all(ops.isfinite(fresh), axis=-1))
            there = dead[:, None]
            if self.shift is None:
                book = ops.where(there, fresh, book)
                mass, sums = ops.where(dead, 1.0, mass), ops.where(there, fresh, sums)
                words = book
            else:
                shift = self.shift[level]
                book = ops.where(there, fresh - ops.stop_gradient(shift), book)
                words = book + shift
            unused = ops.where(dead, 0, unused)
        return words, (book, mass, sums, unused)

    def _counted(self, kept: tuple[Any, ...], code: Any, residual: Any) -> tuple[Any, ...]:
        """State after a batch: running means of the residuals of each codeword, and steps since its last use."""
        book, mass, sums, unused = kept
        finite = ops.all(ops.isfinite(residual), axis=-1, keepdims=True)
        residual = ops.where(finite, residual, ops.zeros_like(residual))
        hits = ops.where(finite, ops.one_hot(code, self.codebook_size, dtype="float32"), 0.0)
        count = ops.sum(hits, axis=0)
        unused = ops.where(count > 0, 0, unused + 1)
        if self.shift is None:
            mass = self.decay * mass + (1.0 - self.decay) * count
            sums = self.decay * sums + (1.0 - self.decay) * ops.matmul(ops.transpose(hits), residual)
            # Of a codeword that is not used, mass and sums shrink alike, until float32 holds neither: it stays where it is.
            book = ops.where((count > 0)[:, None], sums / ops.maximum(mass, 1e-6)[:, None], book)
        return book, mass, sums, unused

    # -- after training --------------------------------------------------------------------------------------------------

    def encode(self, vectors: Any) -> Any:
        """x (..., F) -> codes int32 (..., levels)."""
        vectors = ops.convert_to_tensor(vectors, dtype=self.compute_dtype)
        lead = ops.shape(vectors)[:-1]
        residual = ops.cast(self._through(ops.reshape(vectors, (-1, vectors.shape[-1])), self.encoder), "float32")
        codes = []
        for level in range(self.levels):
            words = self._codewords(level)
            codes.append(self._nearest(residual, words))
            residual = residual - ops.take(words, codes[-1], axis=0)
        return ops.reshape(ops.stack(codes, axis=1), (*lead, self.levels))

    def decode(self, codes: Any) -> Any:
        """Codes (..., levels) -> y (..., F)."""
        codes = ops.convert_to_tensor(codes)
        total = sum(ops.take(self._codewords(level), codes[..., level], axis=0) for level in range(self.levels))
        return self._through(ops.cast(total, self.compute_dtype), self.decoder)

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "levels": self.levels,
            "codebook_size": self.codebook_size,
            "dim": self.dim,
            "hidden": list(self.hidden),
            "update": self.update,
            "decay": self.decay,
            "commitment": self.commitment,
            "revive_after": self.revive_after,
            "activation": self.activation,
            "seed": self.seed,
        }
