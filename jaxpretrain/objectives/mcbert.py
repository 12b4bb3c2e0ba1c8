"""MC-BERT (Xu et al., "MC-BERT: Efficient Language Pre-Training via a Meta Controller", arXiv 2006.05744).

A small masked language model, the meta controller, trains beside the main model and sets it multiple-choice questions:

1. the controller sees the text with [MASK]s and learns to fill them (loss: MLM);
2. from its softmax, k candidates are drawn at every position; where the text was masked, the main model's input becomes
   the first draw;
3. which candidate stood here? Candidate 0 is `<neither>`, the answer where nothing was changed; where something was,
   candidate 1 is the original, and the answer. The rest are draws: they get harder as the controller gets better.

The controller reads the main model's token table through a linear map, which serves its output layer too; both share
the output bias. Loss: controller + 50 · choice, each a mean over its positions.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from jaxpretrain.config import Config, max_positions, narrowed
from jaxpretrain.data.masking import row_keys
from jaxpretrain.data.tokenizer import NEITHER, PAD
from jaxpretrain.models.encoder import Encoder, InputNotes, compute_dtype, fold_in
from jaxpretrain.models.heads import MLMHead, table_map, take_positions
from jaxpretrain.notes import Notes
from jaxpretrain.objectives.base import Aux, Batch, Params, mask, mean_weights, read_notes
from jaxpretrain.objectives.mlm import mlm_loss
from jaxpretrain.objectives.sampling import draw_each


@struct.dataclass
class Questions:
    """What the meta controller asks.

    Attributes:
        inputs: int [B, T], the main model's input.
        candidates: int [B, T, k].
        answers: int [B, T], 0 or 1.
    """

    inputs: Array
    candidates: Array
    answers: Array


def ask(samples: Array, tokens: Array, masked: Array) -> Questions:
    """Questions from draws.

    Args:
        samples: int [B, T, k], drawn from the controller's softmax.
        tokens: int [B, T], the text.
        masked: bool [B, T], where the controller saw [MASK].
    """
    inputs = jnp.where(masked, samples[..., 0], tokens)
    answers = (inputs != tokens).astype(jnp.int32)
    candidates = samples.at[..., 0].set(NEITHER)
    candidates = candidates.at[..., 1].set(jnp.where(answers == 1, tokens, samples[..., 1]))
    return Questions(inputs=inputs, candidates=candidates, answers=answers)


def repeated(questions: Questions, tokens: Array) -> Array:
    """Bool [B, T, k]: candidates that stand there already, and the truth where `<neither>` is the answer."""
    candidates = questions.candidates
    earlier = jnp.tril(candidates[..., :, None] == candidates[..., None, :], -1).any(-1)
    truth = (candidates == tokens[..., None]) & (questions.answers == 0)[..., None]
    return earlier | truth


class MCBERT:
    """Main model and meta controller, trained together."""

    headline = "choice_loss"
    ranks_checkpoints = False

    def __init__(self, config: Config, vocab_size: int) -> None:
        self.config = config
        self.vocab_size = vocab_size
        self.encoder = Encoder(config.model, vocab_size, max_positions(config))
        self.controller = Encoder(narrowed(config), vocab_size, max_positions(config))
        dtype = compute_dtype(config.model)
        self.head = MLMHead(config.model, dtype)
        self.controller_head = MLMHead(self.controller.config, dtype)
        self.table_map = table_map(self.controller.config.hidden, config.model.initializer_range)

    def init(self, key: Array) -> Params:
        keys = jax.random.split(key, 5)
        encoder, controller = self.encoder.init(keys[0]), self.controller.init(keys[1])
        del controller["embedder"]["tokens"]  # the main model's, mapped
        table = encoder["embedder"]["tokens"]
        x = jnp.zeros((1, self.controller.config.hidden))
        controller_head = dict(self.controller_head.init(keys[4], x, jnp.zeros((2, x.shape[-1])))["params"])
        del controller_head["bias"]  # the main head's
        return {
            "encoder": encoder,
            "head": self.head.init(keys[3], jnp.zeros((1, self.config.model.hidden)), table)["params"],
            "controller": controller,
            "controller_head": controller_head,
            "table_map": self.table_map.init(keys[2], table)["params"],
        }

    def corrupt(self, batch: Batch, key: Array) -> Batch:
        mask_key, draw_key = jax.random.split(key)
        batch = mask(batch, mask_key, self.config.objective, self.vocab_size)
        at = jax.vmap(lambda positions, chosen: jnp.zeros(batch["tokens"].shape[1], bool).at[positions].max(chosen))
        masked = at(batch["positions"], batch["weights"] > 0)
        asked = masked if self.config.objective.candidates_at == "masked" else batch["tokens"] != PAD
        draw_keys = row_keys(draw_key, batch["rows"])
        return batch | {"masked": masked, "asked": mean_weights(asked), "draw_keys": draw_keys}

    def loss(self, params: Params, batch: Batch, notes: Notes | None, key: Array | None) -> tuple[Array, Aux]:
        keys = None if key is None else row_keys(key, batch["rows"])
        readable = notes if self.config.notes.auxiliary_reads else None
        controller_notes, _ = read_notes(readable, batch, batch["inputs"], self.config.notes)
        table, padding = self.controller_table(params), batch["tokens"] == PAD
        contexts = self.controller_contexts(params, table, batch["inputs"], padding, keys, controller_notes)
        logits = self.controller_logits(params, table, take_positions(contexts, batch["positions"]))
        samples = self.draw(params, table, contexts, batch, logits)
        return self.loss_of(params, batch, notes, keys, logits, samples)

    def loss_of(
        self, params: Params, batch: Batch, notes: Notes | None, keys: Array | None, logits: Array, samples: Array
    ) -> tuple[Array, Aux]:
        """The loss, once the controller has drawn.

        Args:
            params: of all networks.
            batch: corrupted.
            notes: read by the main model.
            keys: one per row, for dropout; None: no dropout.
            logits: the controller's scores at the predicted positions, [B, P, V].
            samples: int [B, T, k], its draws.
        """
        config = self.config.objective
        controller_loss, metrics = mlm_loss(logits, batch["labels"], batch["weights"])
        questions = ask(samples, batch["tokens"], batch["masked"])
        input_notes, notes_metrics = read_notes(notes, batch, questions.inputs, self.config.notes)
        x = self.encoder.apply(
            params["encoder"],
            questions.inputs,
            padding=batch["tokens"] == PAD,
            notes=input_notes,
            keys=fold_in(keys, 1),
        )
        scores = self.choose(params, x, questions, batch["tokens"])
        nll = -jnp.take_along_axis(jax.nn.log_softmax(scores), questions.answers[..., None], -1)[..., 0]
        right = (scores.argmax(-1) == questions.answers).astype(nll.dtype)
        original = (scores[..., 1:].argmax(-1) == 0).astype(nll.dtype)  # <neither> aside: it is right so often
        asked = (batch["asked"] > 0).astype(nll.dtype)
        changed = asked * questions.answers
        metrics |= notes_metrics | {
            "choice_loss": ((nll * asked).sum(), asked.sum()),
            "choice_accuracy": ((right * asked).sum(), asked.sum()),
            "choice_accuracy_changed": ((right * changed).sum(), changed.sum()),
            "choice_accuracy_original": ((original * changed).sum(), changed.sum()),
            "choice_accuracy_neither": ((right * (asked - changed)).sum(), (asked - changed).sum()),
            "neither_share": ((asked - changed).sum(), asked.sum()),
        }
        if keys is None:  # evaluation: another softmax over the vocabulary
            log_odds = jax.nn.log_softmax(logits / config.temperature)
            entropy, chosen = -(jnp.exp(log_odds) * log_odds).sum(-1), (batch["weights"] > 0).astype(logits.dtype)
            metrics["candidate_entropy"] = ((entropy * chosen).sum(), chosen.sum())
        loss = controller_loss + config.loss_weight * (nll * batch["asked"]).sum()
        return loss, Aux(metrics=metrics, contexts=x)

    def draw(self, params: Params, table: Array, contexts: Array, batch: Batch, logits: Array) -> Array:
        """Candidates at every position, int [B, T, k], from the controller's softmax; no gradient.

        At masked positions alone (`candidates_at`) it is that of `logits`, which are there already.
        """
        config = self.config.objective
        tokens, positions, keys = batch["tokens"], batch["positions"], batch["draw_keys"]
        params, table, contexts, logits = lax.stop_gradient((params, table, contexts, logits))
        if config.candidates_at == "all":
            scores = lambda x: self.controller_logits(params, table, x) / config.temperature  # noqa: E731
            return draw_each(scores, contexts, keys, config.candidates)
        drawn = draw_each(lambda scores: scores / config.temperature, logits, keys, config.candidates)
        everywhere = jnp.broadcast_to(tokens[..., None], (*tokens.shape, config.candidates))
        return jax.vmap(lambda all_, p, d: all_.at[p].set(d))(everywhere, positions, drawn)

    def controller_table(self, params: Params) -> Array:
        """The token table as the controller sees it, [V, its hidden]."""
        return self.table_map.apply({"params": params["table_map"]}, params["encoder"]["embedder"]["tokens"])  # type: ignore

    def controller_contexts(
        self,
        params: Params,
        table: Array,
        inputs: Array,
        padding: Array,
        keys: Array | None,
        notes: InputNotes | None = None,
    ) -> Array:
        """The controller's vectors, [B, T, its hidden]; notes go through the map of the token table."""
        if notes is not None:
            mapped = self.table_map.apply({"params": params["table_map"]}, notes.vectors)
            notes = replace(notes, vectors=mapped)
        controller = self.controller_params(params, table)
        return self.controller.apply(controller, inputs, padding=padding, notes=notes, keys=fold_in(keys, 0))

    def controller_params(self, params: Params, table: Array) -> Params:
        """The controller's encoder, with the table that it sees."""
        return params["controller"] | {"embedder": params["controller"]["embedder"] | {"tokens": table}}

    def controller_logits(self, params: Params, table: Array, x: Array) -> Array:
        """The controller's scores over the vocabulary, [..., V]."""
        return self.controller_head.apply({"params": self.controller_head_params(params)}, x, table)  # type: ignore

    def controller_head_params(self, params: Params) -> Params:
        """The controller's output layer, with the bias that it shares."""
        return params["controller_head"] | {"bias": params["head"]["bias"]}

    def choose(self, params: Params, x: Array, questions: Questions, tokens: Array) -> Array:
        """The main model's scores of the candidates, [B, T, k]; with `distinct`, -inf for those that count no more."""
        scores = self.choice_scores(params, x, questions.candidates)
        return jnp.where(repeated(questions, tokens), -jnp.inf, scores) if self.config.objective.distinct else scores

    def choice_scores(self, params: Params, x: Array, candidates: Array) -> Array:
        """The main model's scores of the candidates, [B, T, k], of which the first is `<neither>`."""
        table = params["encoder"]["embedder"]["tokens"]
        return self.head.apply({"params": params["head"]}, x, table, candidates[..., 1:], NEITHER)  # type: ignore

    def quiz(self, params: Params, batch: Batch, key: Array) -> tuple[Questions, Array]:
        """The questions about a batch and the main model's scores of the candidates, [B, T, k]."""
        batch = self.corrupt(batch, key)
        table, padding = self.controller_table(params), batch["tokens"] == PAD
        contexts = self.controller_contexts(params, table, batch["inputs"], padding, None)
        logits = self.controller_logits(params, table, take_positions(contexts, batch["positions"]))
        questions = ask(self.draw(params, table, contexts, batch, logits), batch["tokens"], batch["masked"])
        x = self.encoder.apply(params["encoder"], questions.inputs, padding=padding)
        return questions, self.choose(params, x, questions, batch["tokens"])

    def fill(self, params: Params, tokens: Array, positions: Array) -> Array:
        """Scores over the vocabulary at masked positions, [B, P, V]: by the controller, which alone sees [MASK]s."""
        table = self.controller_table(params)
        x = self.controller_contexts(params, table, tokens, tokens == PAD, None)
        return self.controller_logits(params, table, take_positions(x, positions))
