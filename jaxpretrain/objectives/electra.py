"""ELECTRA (Clark et al., "Pre-training Text Encoders as Discriminators Rather Than Generators", arXiv 2003.10555).

A generator, a small masked language model, fills the [MASK]s; its guesses are drawn from its softmax and put into the
text. The discriminator, the main model, tells at every position whether the token is the original. A guess that equals
the original counts as original. Loss: generator's MLM + 50 · discriminator's binary cross-entropy, each a mean over its
positions. The networks share the token table, and the position table where positions are added to the input.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from jaxpretrain.config import Config, max_positions, narrowed
from jaxpretrain.data.masking import row_keys
from jaxpretrain.data.tokenizer import PAD
from jaxpretrain.models.encoder import Encoder, InputNotes, compute_dtype, fold_in
from jaxpretrain.models.heads import DiscriminatorHead, MLMHead, take_positions
from jaxpretrain.notes import Notes
from jaxpretrain.objectives.base import Aux, Batch, Params, mask, mean_weights, read_notes
from jaxpretrain.objectives.mlm import mlm_loss
from jaxpretrain.objectives.sampling import draw_each

SHARED = ("tokens", "positions", "segments")  # tables of the embedder that are the main model's


class ELECTRA:
    """Discriminator and generator, trained together."""

    headline = "discriminator_loss"
    ranks_checkpoints = False

    def __init__(self, config: Config, vocab_size: int) -> None:
        self.config = config
        self.vocab_size = vocab_size
        self.encoder = Encoder(config.model, vocab_size, max_positions(config))
        self.generator = Encoder(narrowed(config), vocab_size, max_positions(config))
        dtype = compute_dtype(config.model)
        self.head = DiscriminatorHead(config.model, dtype)
        self.generator_head = MLMHead(self.generator.config, dtype)

    def init(self, key: Array) -> Params:
        keys = jax.random.split(key, 4)
        encoder, generator = self.encoder.init(keys[0]), self.generator.init(keys[1])
        x = jnp.zeros((1, self.generator.config.hidden))
        generator_head = self.generator_head.init(keys[2], x, generator["embedder"]["tokens"])["params"]
        for table in SHARED:
            generator["embedder"].pop(table, None)
        return {
            "encoder": encoder,
            "head": self.head.init(keys[3], jnp.zeros((1, self.config.model.hidden)))["params"],
            "generator": generator,
            "generator_head": generator_head,
        }

    def corrupt(self, batch: Batch, key: Array) -> Batch:
        mask_key, draw_key = jax.random.split(key)
        batch = mask(batch, mask_key, self.config.objective, self.vocab_size)
        present = mean_weights(batch["tokens"] != PAD)
        return batch | {"present": present, "draw_keys": row_keys(draw_key, batch["rows"])}

    def loss(self, params: Params, batch: Batch, notes: Notes | None, key: Array | None) -> tuple[Array, Aux]:
        config = self.config.objective
        tokens, positions, padding = batch["tokens"], batch["positions"], batch["tokens"] == PAD
        keys = None if key is None else row_keys(key, batch["rows"])
        readable = notes if self.config.notes.auxiliary_reads else None
        generator_notes, _ = read_notes(readable, batch, batch["inputs"], self.config.notes)
        x = self.generator_contexts(params, batch["inputs"], padding, keys, generator_notes)
        masked_x = take_positions(x, positions)
        logits = self.logits(params, masked_x)
        generator_loss, metrics = mlm_loss(logits, batch["labels"], batch["weights"])

        scaled = lambda logits: logits / config.temperature  # noqa: E731
        guesses = draw_each(scaled, lax.stop_gradient(logits), batch["draw_keys"], 1)[..., 0]
        guesses = jnp.where(batch["weights"] > 0, guesses, batch["labels"])
        inputs = jax.vmap(lambda row, p, g: row.at[p].set(g))(tokens, positions, guesses)
        replaced = (inputs != tokens).astype(jnp.float32)

        input_notes, notes_metrics = read_notes(notes, batch, inputs, self.config.notes)
        contexts = self.encoder.apply(
            params["encoder"],
            inputs,
            padding=padding,
            notes=input_notes,
            keys=fold_in(keys, 1),
        )
        scores: Array = self.head.apply({"params": params["head"]}, contexts)  # type: ignore[assignment]
        losses = optax.sigmoid_binary_cross_entropy(scores, replaced)
        present = (~padding).astype(losses.dtype)
        right = ((scores > 0) == (replaced > 0)).astype(losses.dtype) * present
        count, replaced_count = present.sum(), (replaced * present).sum()
        metrics |= notes_metrics | {
            "discriminator_loss": ((losses * present).sum(), count),
            "discriminator_accuracy": (right.sum(), count),
            "discriminator_recall": ((right * replaced).sum(), replaced_count),
            "replaced_share": (replaced_count, count),
        }
        if key is None:  # evaluation: it takes a sort
            # Pairs of a replaced and an original piece of one sequence that the scores put in order: in ascending
            # order, the originals before each replaced one.
            _, found, others = lax.sort((scores, replaced * present, (1 - replaced) * present), num_keys=1)
            pairs = (found.sum(-1) * others.sum(-1)).sum()
            metrics["discriminator_auc"] = ((found * others.cumsum(-1)).sum(), pairs)
        loss = generator_loss + config.loss_weight * (losses * batch["present"]).sum()
        return loss, Aux(metrics=metrics, contexts=contexts)

    def generator_contexts(
        self, params: Params, inputs: Array, padding: Array, keys: Array | None, notes: InputNotes | None = None
    ) -> Array:
        """The generator's vectors, [B, T, its hidden]."""
        generator = self.generator_params(params)
        return self.generator.apply(generator, inputs, padding=padding, notes=notes, keys=fold_in(keys, 0))

    def generator_params(self, params: Params) -> Params:
        """The generator's encoder, with the tables that it shares."""
        tables, generator = params["encoder"]["embedder"], params["generator"]
        shared = {name: tables[name] for name in SHARED if name in tables}
        return generator | {"embedder": generator["embedder"] | shared}

    def logits(self, params: Params, x: Array) -> Array:
        """The generator's scores over the vocabulary, [..., V]."""
        table = params["encoder"]["embedder"]["tokens"]
        return self.generator_head.apply({"params": params["generator_head"]}, x, table)  # type: ignore[return-value]

    def fill(self, params: Params, tokens: Array, positions: Array) -> Array:
        """Scores over the vocabulary at masked positions, [B, P, V]: by the generator, which alone sees [MASK]s."""
        x = self.generator_contexts(params, tokens, tokens == PAD, None)
        return self.logits(params, take_positions(x, positions))
