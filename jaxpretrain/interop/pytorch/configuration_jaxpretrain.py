"""The configuration of a jaxpretrain encoder in Hugging Face transformers."""

from typing import Any

from transformers import PretrainedConfig

POSITIONS = ("absolute", "relative", "absolute_untied", "tupe_a", "tupe_r")


class JaxPretrainConfig(PretrainedConfig):
    """A BERT-like encoder whose positions may enter the attention in one of five ways.

    Args:
        vocab_size: pieces.
        position: `absolute` (position vectors added to the input: BERT), `relative` (the same, and T5's bias on the
            scores), `absolute_untied` (position vectors added to queries and keys), `tupe_a` (word and position scores
            apart, added: TUPE-A), `tupe_r` (the same, and T5's bias: TUPE-R).
        untie_cls: TUPE only: `[CLS]`, the first token, has two position scores of its own.
        hidden_size: width of the layers.
        num_hidden_layers: layers.
        num_attention_heads: heads of each.
        intermediate_size: inner width of the feed-forward part.
        embedding_size: width of the token table; 0: `hidden_size`. Another width adds a projection.
        max_position_embeddings: longest sequence.
        type_vocab_size: rows of the segment table; 0: there is none, and `token_type_ids` are not read.
        relative_buckets: of the relative bias; a multiple of 4.
        relative_max_distance: from which on all distances share a bucket.
        hidden_dropout_prob: dropout on vectors.
        attention_probs_dropout_prob: dropout on attention weights.
        layer_norm_eps: of every layer norm.
        initializer_range: standard deviation of fresh weights.
        pad_token_id: the padding piece.
    """

    model_type = "jaxpretrain"

    def __init__(
        self,
        vocab_size: int = 8192,
        position: str = "tupe_a",
        untie_cls: bool = True,
        hidden_size: int = 128,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 2,
        intermediate_size: int = 512,
        embedding_size: int = 0,
        max_position_embeddings: int = 128,
        type_vocab_size: int = 0,
        relative_buckets: int = 32,
        relative_max_distance: int = 128,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        pad_token_id: int = 0,
        **kwargs: Any,
    ):
        if position not in POSITIONS:
            raise ValueError(f"position={position!r}: must be one of {', '.join(POSITIONS)}")
        self.vocab_size = vocab_size
        self.position = position
        self.untie_cls = untie_cls
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.embedding_size = embedding_size or hidden_size
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.relative_buckets = relative_buckets
        self.relative_max_distance = relative_max_distance
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        super().__init__(pad_token_id=pad_token_id, **kwargs)
