import os
from unittest import mock

# SentencePiece's messages are generated for the newest protobuf and refuse an older one, which Apache Beam holds to.
# They are mere descriptions, and any protobuf reads them: tests/data/test_beam.py trains and opens models with both.
with mock.patch.dict(os.environ, TEMPORARILY_DISABLE_PROTOBUF_VERSION_CHECK="true"):
    import sentencepiece.sentencepiece_model_pb2  # noqa: F401
