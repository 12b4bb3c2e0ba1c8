"""The encoders of jaxpretrain in PyTorch: BERT with its positions in the input, in the attention, or apart (TUPE).

Written to be read beside TUPE (arXiv 2006.15595). The score of query i for key j in a head of width d is

    (x_i W_Q)(x_j W_K)^T * s  +  (p_i U_Q)(p_j U_K)^T * s  [+ b_(j-i)],    s = 1 / sqrt(2 d)

Everything but the first product holds no word: it is computed once, in `Positions`, and serves all layers.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput

from .configuration_jaxpretrain import JaxPretrainConfig


def relative_buckets(longest: int, buckets: int, max_distance: int) -> np.ndarray:
    """T5's bucket of each distance j - i from -(longest - 1) to longest - 1, int [2 longest - 1].

    Half of the buckets are for keys after the query. Of either half, the first half holds one distance each; the second
    grows by a constant factor up to `max_distance`, beyond which all share the last.
    """
    half, exact = buckets // 2, buckets // 4
    distance = np.arange(1 - longest, longest)
    size = np.abs(distance)
    # float32 as in training: the bucket of a distance on a border depends on it.
    growth = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact))
    growth = growth / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + growth.astype(np.int64), half - 1)
    return np.where(distance > 0, half, 0) + np.where(size < exact, size, far)


def reset_cls(bias: Tensor, cls_to_others: Tensor, others_to_cls: Tensor) -> Tensor:
    """TUPE's equation 10: in [heads, T, T], position 0 gets one score per head as a key and one as a query."""
    row, column = cls_to_others[:, None, None], others_to_cls[:, None, None]
    heads, length, _ = bias.shape
    rest = torch.cat([column.expand(heads, length - 1, 1), bias[:, 1:, 1:]], dim=2)
    return torch.cat([row.expand(heads, 1, length), rest], dim=1)


class Positions(nn.Module):
    """What positions add to the attention of every layer."""

    def __init__(self, config: JaxPretrainConfig):
        super().__init__()
        self.config = config
        kind, hidden = config.position, config.hidden_size
        self.heads, self.width = config.num_attention_heads, hidden // config.num_attention_heads
        self.untie_cls = config.untie_cls and kind in ("tupe_a", "tupe_r")
        self.products = {"tupe_a": 2, "tupe_r": 2, "absolute_untied": 4}.get(kind, 1)  # summed in a score
        if kind in ("tupe_a", "tupe_r", "absolute_untied"):
            # Where [CLS] is untied, row 0 makes its score for others, row 1 (its own place) the others' for it.
            self.table = nn.Embedding(config.max_position_embeddings + int(self.untie_cls), hidden)
            self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
            self.query = nn.Linear(hidden, hidden)
            self.key = nn.Linear(hidden, hidden)
        if kind in ("relative", "tupe_r"):
            # One more for [CLS] as a key; as a query it has the middle bucket, which no distance falls into.
            self.relative = nn.Embedding(config.relative_buckets + int(self.untie_cls), self.heads)

    @property
    def scale(self) -> float:
        """Of every product of a query and a key."""
        return (self.products * self.width) ** -0.5

    def forward(self, length: int) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
        """Returns a bias on the scores, [heads, T, T], and vectors added to queries and keys, [T, hidden] each."""
        kind = self.config.position
        if kind == "absolute":
            return None, None
        if kind == "relative":
            return self.relative_bias(length), None
        extra = int(self.untie_cls)
        vectors = self.norm(self.table.weight[: length + extra])
        query, key = self.query(vectors), self.key(vectors)
        if kind == "absolute_untied":
            return None, (query, key)
        query, key = (x.view(-1, self.heads, self.width).transpose(0, 1) for x in (query * self.scale, key))
        bias = query @ key.transpose(1, 2)
        if self.untie_cls:
            bias = reset_cls(bias[:, 1:, 1:], bias[:, 0, 0], bias[:, 1, 1])
        if kind == "tupe_r":
            bias = bias + self.relative_bias(length)
        return bias, None

    def relative_bias(self, length: int) -> Tensor:
        """T5's bias, [heads, T, T]: one learned value per bucket and head."""
        table, buckets, longest = (
            self.relative.weight,
            self.config.relative_buckets,
            self.config.max_position_embeddings,
        )
        found = torch.from_numpy(relative_buckets(longest, buckets, self.config.relative_max_distance)).to(table.device)
        places = torch.arange(length, device=table.device)
        bias = table[found[places - places[:, None] + longest - 1]].permute(2, 0, 1)
        return reset_cls(bias, table[buckets // 2], table[buckets]) if self.untie_cls else bias


class Embeddings(nn.Module):
    """Tokens to the layers' input: table (+ position + segment), layer norm, dropout, a projection if widths differ."""

    def __init__(self, config: JaxPretrainConfig):
        super().__init__()
        width = config.embedding_size
        self.tokens = nn.Embedding(config.vocab_size, width)
        added = config.position in ("absolute", "relative")
        self.positions = nn.Embedding(config.max_position_embeddings, width) if added else None
        self.segments = nn.Embedding(config.type_vocab_size, width) if config.type_vocab_size else None
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.projection = nn.Linear(width, config.hidden_size) if width != config.hidden_size else None

    def forward(self, x: Tensor, segments: Tensor | None) -> Tensor:
        """Token vectors [B, T, E] → [B, T, hidden]; `segments` int [B, T], zeros if None."""
        if self.positions is not None:
            x = x + self.positions.weight[: x.shape[1]]
        if self.segments is not None:
            x = x + (self.segments.weight[0] if segments is None else self.segments(segments))
        x = self.dropout(self.norm(x))
        return x if self.projection is None else self.projection(x)


class Layer(nn.Module):
    """Attention and feed-forward, each with a residual and a layer norm after it."""

    def __init__(self, config: JaxPretrainConfig):
        super().__init__()
        hidden, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.heads, self.attention_dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.out = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=eps)
        self.ffn_in = nn.Linear(hidden, inner)
        self.ffn_out = nn.Linear(inner, hidden)
        self.ffn_norm = nn.LayerNorm(hidden, eps=eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, bias: Tensor | None, added: tuple[Tensor, Tensor] | None, scale: float) -> Tensor:
        """x [B, T, hidden] → the same shape.

        Args:
            x: the vectors.
            bias: on the scores, [B or 1, heads or 1, T or 1, T].
            added: to queries and keys, [T, hidden] each.
            scale: of the products of queries and keys.
        """
        batch, length, hidden = x.shape
        query, key, value = self.query(x), self.key(x), self.value(x)
        if added is not None:
            query, key = query + added[0], key + added[1]
        query, key, value = (y.view(batch, length, self.heads, -1).transpose(1, 2) for y in (query, key, value))
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=scale)
        # The fused kernels have layouts of their own, which torch.export does not keep track of; it does of a copy.
        attended = attended.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        attended = self.out(attended.view(batch, length, hidden))
        x = self.attention_norm(x + self.dropout(attended))
        inner = self.ffn_out(F.gelu(self.ffn_in(x)))
        return self.ffn_norm(x + self.dropout(inner))


class JaxPretrainPreTrainedModel(PreTrainedModel):
    """What the models below share: how weights are found in a file, and how fresh ones are drawn."""

    config_class = JaxPretrainConfig
    base_model_prefix = "model"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Linear | nn.LayerNorm):
            nn.init.zeros_(module.bias)
        if isinstance(module, MaskedLMHead):
            nn.init.zeros_(module.bias)


class JaxPretrainModel(JaxPretrainPreTrainedModel):
    """The encoder: contextual vectors of a batch of token ids."""

    def __init__(self, config: JaxPretrainConfig):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.positions = Positions(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput | tuple:
        """Vectors [B, T, hidden].

        Args:
            input_ids: int [B, T].
            attention_mask: [B, T], 0 where there is no token; None: tokens everywhere.
            token_type_ids: int [B, T]; read by models that have a segment table.
            inputs_embeds: [B, T, embedding_size], instead of `input_ids`.
            output_hidden_states: return every layer's vectors too.
            return_dict: False: a plain tuple.
            kwargs: of other models; not used.
        """
        if kwargs.get("output_attentions"):
            raise ValueError("output_attentions: the fused attention keeps no weights")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embeddings.tokens(input_ids) if inputs_embeds is None else inputs_embeds
        length, longest = x.shape[1], self.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"{length} tokens: the model has positions for {longest}")
        x = self.embeddings(x, token_type_ids)
        bias, added = self.positions(length)
        bias = None if bias is None else bias[None]
        if attention_mask is not None:
            bias = x.new_zeros(1, 1, 1, length) if bias is None else bias
            bias = bias.masked_fill(attention_mask[:, None, None, :] == 0, torch.finfo(bias.dtype).min)
        states = [x]
        for layer in self.layers:
            x = layer(x, bias, added, self.positions.scale)
            states.append(x)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = BaseModelOutput(last_hidden_state=x, hidden_states=tuple(states) if wanted else None)
        return output.to_tuple() if return_dict is False else output


class MaskedLMHead(nn.Module):
    """Vectors to scores over the vocabulary: dense, GELU, layer norm, then the token table and a bias."""

    def __init__(self, config: JaxPretrainConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """x [..., hidden] and the table [V, E] → [..., V]."""
        return F.linear(self.norm(F.gelu(self.dense(x))), table, self.bias)


class JaxPretrainForMaskedLM(JaxPretrainPreTrainedModel):
    """The encoder with the head that fills [MASK]s. The head's last map is the token table itself."""

    def __init__(self, config: JaxPretrainConfig):
        super().__init__(config)
        self.model = JaxPretrainModel(config)
        self.head = MaskedLMHead(config)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Scores [B, T, V]; with `labels`, int [B, T] (-100: not counted), their mean cross-entropy too."""
        as_dict = kwargs.pop("return_dict", None) is not False
        output = self.model(input_ids, **kwargs)
        logits = self.head(output.last_hidden_state, self.model.embeddings.tokens.weight)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        found = MaskedLMOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)
        return found if as_dict else found.to_tuple()


class DiscriminatorHead(nn.Module):
    """Vectors to one score each, above 0 for "replaced": dense, GELU, dense."""

    def __init__(self, config: JaxPretrainConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.score = nn.Linear(config.hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] → [...]."""
        return self.score(F.gelu(self.dense(x)))[..., 0]


class JaxPretrainForPreTraining(JaxPretrainPreTrainedModel):
    """ELECTRA's discriminator: tells at every position whether the token was replaced."""

    def __init__(self, config: JaxPretrainConfig):
        super().__init__(config)
        self.model = JaxPretrainModel(config)
        self.head = DiscriminatorHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Scores [B, T]; with `labels` (1: replaced), [B, T], their mean binary cross-entropy over the tokens too."""
        as_dict = kwargs.pop("return_dict", None) is not False
        output = self.model(input_ids, attention_mask=attention_mask, **kwargs)
        logits = self.head(output.last_hidden_state)
        loss = None
        if labels is not None:
            weights = torch.ones_like(logits) if attention_mask is None else attention_mask.to(logits.dtype)
            losses = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
            loss = (losses * weights).sum() / weights.sum().clamp(min=1)
        found = MaskedLMOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)
        return found if as_dict else found.to_tuple()


class ClassifierHead(nn.Module):
    """The vector at [CLS] to a score per class: dense, tanh, dense, with dropout before each."""

    def __init__(self, config: JaxPretrainConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.num_labels)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, hidden] → [B, labels]."""
        return self.out(self.dropout(torch.tanh(self.dense(self.dropout(x)))))


class JaxPretrainForSequenceClassification(JaxPretrainPreTrainedModel):
    """The encoder with a classifier on [CLS], to be fine-tuned: the classifier's weights are fresh."""

    def __init__(self, config: JaxPretrainConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = JaxPretrainModel(config)
        self.classifier = ClassifierHead(config)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Scores [B, labels]; with `labels` a loss too.

        The loss is the squared error where there is one label, the binary cross-entropy where `labels` are floats
        [B, labels], else the cross-entropy; `config.problem_type` overrules this.
        """
        as_dict = kwargs.pop("return_dict", None) is not False
        output = self.model(input_ids, **kwargs)
        logits = self.classifier(output.last_hidden_state[:, 0])
        loss = None if labels is None else self.loss(logits, labels)
        found = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)
        return found if as_dict else found.to_tuple()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of a batch."""
        kind = self.config.problem_type
        if kind is None and self.num_labels == 1:
            kind = "regression"
        elif kind is None and labels.is_floating_point():
            kind = "multi_label_classification"
        if kind == "regression":
            return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).reshape(logits.squeeze(-1).shape))
        if kind == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.cross_entropy(logits, labels.reshape(-1))


# So that `save_pretrained` puts this code beside the weights again.
JaxPretrainConfig.register_for_auto_class()
JaxPretrainModel.register_for_auto_class("AutoModel")
JaxPretrainForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
JaxPretrainForPreTraining.register_for_auto_class("AutoModelForPreTraining")
JaxPretrainForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
