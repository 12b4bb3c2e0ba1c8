import jaxpretrain.data  # noqa: F401  # before SentencePiece's messages, which it lets any protobuf read
