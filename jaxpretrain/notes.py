"""TNF: notes for rare words (Wu et al., "Taking Notes on the Fly Helps Language Pre-training", arXiv 2008.01466).

A rare word w keeps a note, a running mean of the contexts it was met in. Where w appears, its note is mixed into the
input, and what the encoder makes of the place is mixed back into the note (section 3.2; λ, k, γ are config):

    input_i     = (1 - λ) (token_i + position_i) + λ NoteDict(w)          at every piece i of w
    Note(w, x)  = mean of the encoder's outputs over [s - k, t + k)        for w at the pieces [s, t) of x
    NoteDict(w) ← (1 - γ) NoteDict(w) + γ Note(w, x)

The table is state, not a parameter: three pure functions, `init`, `lookup` before the encoder and `update` after the
gradient, and no gradient flows into it. An occurrence has its note only where the input shows the whole word: a network
that sees a piece masked or replaced must not be told what stood there.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from jaxpretrain.config import NotesConfig
from jaxpretrain.models.encoder import InputNotes

NONE = np.iinfo(np.int32).max  # the row of no word


@struct.dataclass
class Notes:
    """The note dictionary.

    Attributes:
        table: float32 [N, H], one row per rare word. Not narrower: bfloat16 loses a moving average's small steps.
        written: int32 [N], the step at which each row was last written; -1: never.
    """

    table: Array
    written: Array


@struct.dataclass
class Occurrences:
    """Where rare words stand in a batch, at most C a sequence.

    Attributes:
        ids: int32 [B, C], rows of the table; `NONE` where there is no occurrence, which gathers and scatters drop.
        starts: int32 [B, C], the first piece.
        ends: int32 [B, C], one past the last.
        overflow: int32 [B], occurrences beyond the capacity; they are neither read nor written.
    """

    ids: Array
    starts: Array
    ends: Array
    overflow: Array


def init(key: Array, rows: int, width: int, scale: float) -> Notes:
    """Random notes, normal(0, scale) like the embeddings."""
    return Notes(table=scale * jax.random.normal(key, (rows, width)), written=jnp.full(rows, -1, jnp.int32))


def find(words: Array, capacity: int) -> Occurrences:
    """The occurrences that a batch's word marks describe.

    Args:
        words: int32 [B, T]: 0, or 2 (1 + row) + (1 at the first piece of an occurrence). A word cut by the border of
            the sequence has no marks.
        capacity: C.
    """
    length = words.shape[1]
    place = jnp.arange(length)

    def one(words: Array) -> Occurrences:
        first = (words & 1).astype(bool)
        # The nearest place after each one at which another word, or none, begins.
        border = jnp.where(first | (words == 0), place, length)
        after = lax.cummin(border[::-1])[::-1]
        end = jnp.append(after[1:], length)
        starts = jnp.argsort(~first)[:capacity]  # the first places, in order; unlike top_k it stays on each device
        ids = jnp.where(first[starts], words[starts] // 2 - 1, NONE)
        return Occurrences(ids=ids, starts=starts, ends=end[starts], overflow=jnp.maximum(first.sum() - capacity, 0))

    return jax.vmap(one)(words)


def intact(occurrences: Occurrences, tokens: Array, inputs: Array) -> Array:
    """Bool [B, C]: the occurrences whose pieces all stand in the input, int [B, T], as they do in the text."""
    changed = jnp.cumsum(jnp.pad(tokens != inputs, ((0, 0), (1, 0))), axis=1, dtype=jnp.int32)
    before = jnp.take_along_axis(changed, occurrences.starts, 1)
    unchanged = jnp.take_along_axis(changed, occurrences.ends, 1) == before
    return unchanged & (occurrences.ids != NONE)


def lookup(notes: Notes, occurrences: Occurrences, tokens: Array, inputs: Array, config: NotesConfig) -> InputNotes:
    """What is mixed into the input of a network that sees `inputs`, int [B, T], in place of `tokens`.

    No gradient flows into the table.
    """
    place = jnp.arange(tokens.shape[1])
    shown = intact(occurrences, tokens, inputs)
    inside = (occurrences.starts[..., None] <= place) & (place < occurrences.ends[..., None]) & shown[..., None]
    # Occurrences do not overlap: at most one of the C holds at each place.
    ids = jnp.where(inside, occurrences.ids[..., None], 0).sum(1)
    weight = jnp.where(inside.any(1), config.weight, 0.0)
    return InputNotes(vectors=lax.stop_gradient(notes.table[ids]), weight=weight)


def contexts_of(contexts: Array, padding: Array, occurrences: Occurrences, window: int) -> Array:
    """Note(w, x), [B, C, H] float32: the mean output over each occurrence and `window` pieces either side.

    Args:
        contexts: [B, T, H], the encoder's last layer.
        padding: bool [B, T]; left out, as is what lies beyond the sequence's edges.
        occurrences: of the batch.
        window: k.
    """
    near = around(occurrences, contexts.shape[1], window)
    near = (near & ~padding[:, None, :]).astype(contexts.dtype)
    dtype = jnp.promote_types(contexts.dtype, jnp.float32)
    sums = jnp.einsum("bct,bth->bch", near, lax.stop_gradient(contexts), preferred_element_type=dtype)
    return sums / jnp.maximum(near.astype(dtype).sum(-1), 1)[..., None]


def around(occurrences: Occurrences, length: int, window: int) -> Array:
    """Bool [B, C, T]: the places of each occurrence and `window` either side."""
    place = jnp.arange(length)
    near = (place >= occurrences.starts[..., None] - window) & (place < occurrences.ends[..., None] + window)
    return near & (occurrences.ids != NONE)[..., None]


def update(notes: Notes, ids: Array, values: Array, step: Array, config: NotesConfig) -> Notes:
    """The table after a step.

    A word met several times in the global batch moves once, by γ towards the mean of its contexts, or with
    `repeats="compound"` by 1 - (1 - γ)^count, as far as one after another would take it.

    Args:
        notes: before.
        ids: int [M], rows; `NONE`: no occurrence.
        values: float [M, H], contexts.
        step: int [], the number of this step.
        config: rate γ and the rule for repeats.
    """
    rows = len(notes.table)
    count = jnp.zeros(rows, jnp.int32).at[ids].add(1, mode="drop")
    n = count.at[ids].get(mode="fill", fill_value=1)[:, None].astype(values.dtype)
    rate = config.rate if config.repeats == "mean" else 1 - (1 - config.rate) ** n
    # The old row is read before any is written, so n equal shares add up to the move: no sorting, no second table.
    old = notes.table.at[ids].get(mode="fill", fill_value=0)
    table = notes.table.at[ids].add((rate / n * (values - old)).astype(notes.table.dtype), mode="drop")
    return Notes(table=table, written=notes.written.at[ids].set(step, mode="drop"))


def summary(notes: Notes, step: Array, rows: int) -> dict[str, Array]:
    """The state of the dictionary: a pass over the table, so for evaluation and not for every step.

    Args:
        notes: the table.
        step: int [], steps taken.
        rows: words in the dictionary; the table may have more, to divide among devices.

    Returns:
        `norm`: mean length of a note; `age`: mean number of steps since a note that was ever written was; and
        `share_written`: share of notes that were.
    """
    ever = notes.written >= 0
    age = jnp.where(ever, step - notes.written, 0).sum() / jnp.maximum(ever.sum(), 1)
    norm = jnp.linalg.norm(notes.table[:rows], axis=-1).mean()
    return {"norm": norm, "age": age, "share_written": ever.sum() / rows}
