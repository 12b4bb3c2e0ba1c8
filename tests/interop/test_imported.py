"""Foreign models as runs: the same answers under our ids, and one line for what does not fit."""

import argparse
import importlib.metadata
import json
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpretrain
from jaxpretrain.config import ConfigError
from jaxpretrain.data.tokenizer import CLS, MASK, PAD, SEP, SPECIAL_PIECES, UNK
from jaxpretrain.evaluation.trained import embed, load_run, to_ids
from jaxpretrain.interop import fairseq, foreign_tokenizer, imported
from jaxpretrain.interop.export import export
from jaxpretrain.interop.imported import from_huggingface, from_official, write_run
from jaxpretrain.interop.model_card import model_card
from jaxpretrain.interop.serving import serve

FIXTURES = Path(__file__).parents[1] / "parity"
TOKENIZERS = "needs the library tokenizers, which pip install 'jaxpretrain[hf]' brings"
TORCH = "needs PyTorch and transformers, which pip install 'jaxpretrain[hf]' brings"
WORDS = ["the", "dog", "fox", "jumps", "over", "lazy", "brown", "quick", "un", "##able", "##s", "##ing", "play"]
WORDS += [",", ".", "!", "é", "naive", "中", "文", "of"]


def vocabulary(rows: int, lowercase: bool = True) -> list[str]:
    """BERT's order: unused rows between the special pieces and the rest."""
    pieces = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[unused1]", "[MASK]", *WORDS]
    pieces += [] if lowercase else ["The", "DOG"]
    letters = list("abcdefghijklmnopqrstuvwxyz")
    return (pieces + letters + [f"##{c}" for c in letters])[:rows]


def wordpiece(normalizer: Any = None, change: dict[str, Any] | None = None, **model: Any) -> str:
    """A `tokenizer.json` of BERT's kind, with something changed."""
    vocab = {piece: i for i, piece in enumerate(vocabulary(67))} | (change or {})
    parts = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab}
    values = {
        "normalizer": normalizer or {"type": "BertNormalizer"},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece"} | parts | model,
    }
    return json.dumps(values)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A stock BERT with a WordPiece vocabulary, in the older layout: `vocab.txt`."""
    folder = tmp_path / "bert"
    shutil.copytree(FIXTURES / "hf_bert_mlm", folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary(rows)) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def electra(tmp_path: Path) -> tuple[Path, Path]:
    """Discriminator and generator, which share their tables."""
    import safetensors.numpy

    folders = tmp_path / "hf_electra_discriminator", tmp_path / "generator"
    for folder, name in zip(folders, ("hf_electra_discriminator", "hf_electra_generator"), strict=True):
        shutil.copytree(FIXTURES / name, folder)
    weights = safetensors.numpy.load_file(folders[0] / "model.safetensors")
    other = safetensors.numpy.load_file(folders[1] / "model.safetensors")
    for key in other:
        if key.endswith("_embeddings.weight"):
            other[key] = weights[key]
    other.pop("generator_lm_head.weight", None)
    safetensors.numpy.save_file(other, folders[1] / "model.safetensors")
    rows = json.loads((folders[0] / "config.json").read_text())["vocab_size"]
    (folders[0] / "vocab.txt").write_text("\n".join(vocabulary(rows)) + "\n", encoding="utf-8")
    return folders


TEXTS = [
    "The dogs, playing: UNABLE!",
    "[MASK] of the naïve fox 中文.",
    "",
    "xyz" * 50,
    "a\u0301 e\u0301 \x00b\tc",
]


def test_weights_and_ids_of_bert(bert: Path, tmp_path: Path) -> None:
    """Without any library: the reordered vocabulary gives what the model gave for its own ids."""
    expected = dict(np.load(bert / "expected.npz"))
    from_huggingface(bert, tmp_path / "run")
    values = json.loads((tmp_path / "run" / "tokenizer.json").read_text())
    ours = values["model"]["vocab"]
    assert [piece for piece, i in sorted(ours.items(), key=lambda pair: pair[1])][:6] == list(SPECIAL_PIECES)
    theirs = vocabulary(67)
    to_ours = np.array([ours[piece] for piece in theirs])
    objective, params = load_weights(tmp_path / "run")
    padding = jnp.asarray(expected["attention_mask"] == 0)
    tokens = jnp.asarray(to_ours[expected["input_ids"]], jnp.int32)
    segments = jnp.asarray(expected["token_type_ids"], jnp.int32)
    x = jax.jit(objective.encoder.apply)(params["encoder"], tokens, padding=padding, segments=segments)
    np.testing.assert_allclose(x, expected["last_hidden_state"], atol=1e-4)
    logits = jax.jit(objective.logits)(params, x)
    np.testing.assert_allclose(logits[..., to_ours], expected["logits"], atol=1e-4)
    assert (logits[..., SPECIAL_PIECES.index("<neither>")] < -9_000).all()


def load_weights(workdir: Path) -> tuple[Any, Any]:
    """A run's objective and parameters, whatever its tokenizer needs."""
    with pytest.MonkeyPatch.context() as patch:
        count = len(json.loads((workdir / "tokenizer.json").read_text())["model"]["vocab"])
        stub = argparse.Namespace(vocab_size=count)
        patch.setattr("jaxpretrain.evaluation.trained.load_tokenizer", lambda _: stub)
        run = load_run(workdir)
    return run.objective, run.params


def test_ids_are_those_of_transformers(bert: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason=TORCH)
    for lowercase in (True, False):
        (bert / "vocab.txt").write_text("\n".join(vocabulary(67, lowercase)) + "\n", encoding="utf-8")
        (bert / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
        theirs = transformers.BertTokenizerFast.from_pretrained(bert)
        workdir = tmp_path / f"run-{lowercase}"
        assert from_huggingface(bert, workdir).data.lowercase == lowercase
        ours = load_run(workdir).tokenizer
        known = json.loads((workdir / "tokenizer.json").read_text())["model"]["vocab"]
        to_ours = np.array([known[piece] for piece in vocabulary(67, lowercase)])
        for text in TEXTS:
            assert to_ids(ours, text, 10**6) == to_ours[theirs(text)["input_ids"]].tolist()
        plain = theirs("[CLS] [mask] \x00b", add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode("[CLS] [mask] \x00b").tolist() == to_ours[plain].tolist()


def test_a_tokenizer_json_is_read_like_the_older_files(bert: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason=TORCH)
    from_huggingface(bert, tmp_path / "old")
    transformers.BertTokenizerFast.from_pretrained(bert).save_pretrained(tmp_path / "new")
    (bert / "vocab.txt").unlink()
    shutil.copy(tmp_path / "new" / "tokenizer.json", bert)
    from_huggingface(bert, tmp_path / "run")
    old, new = (json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("old", "run"))
    assert old["model"] == new["model"]
    assert old["pre_tokenizer"] == new["pre_tokenizer"]


def test_a_tokenizer_json_whose_model_names_no_type(bert: Path, tmp_path: Path) -> None:
    """As in the published bert-base-uncased."""
    values = json.loads(wordpiece())
    (bert / "tokenizer.json").write_text(json.dumps(values))
    from_huggingface(bert, tmp_path / "typed")
    del values["model"]["type"]
    (bert / "tokenizer.json").write_text(json.dumps(values))
    from_huggingface(bert, tmp_path / "run")
    typed, untyped = ((tmp_path / name / "tokenizer.json").read_text() for name in ("typed", "run"))
    assert typed == untyped


def test_masks_are_filled_as_by_transformers(bert: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=TORCH)
    transformers = pytest.importorskip("transformers", reason=TORCH)
    from_huggingface(bert, tmp_path / "run")
    text = "The [MASK] jumps over the dog."
    [answer] = jaxpretrain.load(tmp_path / "run").fill_mask(text, top=3)
    tokenizer = transformers.BertTokenizerFast.from_pretrained(bert)
    given = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = transformers.BertForMaskedLM.from_pretrained(bert).eval()(**given).logits[0, 2]
    special = [tokenizer.convert_tokens_to_ids(piece) for piece in SPECIAL_PIECES[:5]]
    logits[special] = -torch.inf
    values, ids = logits.softmax(-1).topk(3)
    names = tokenizer.convert_ids_to_tokens(ids)
    assert [name.lstrip("-") for name in answer] == [name.removeprefix("##") for name in names]
    np.testing.assert_allclose(list(answer.values()), values, rtol=1e-3)


def test_an_imported_model_can_be_exported_again(bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason=TOKENIZERS)
    from_huggingface(bert, tmp_path / "run")
    run = load_run(tmp_path / "run")
    export(run, tmp_path / "run", tmp_path / "out")
    from_huggingface(tmp_path / "out", tmp_path / "again")
    again = load_run(tmp_path / "again")
    assert again.tokenizer.vocab_size == run.tokenizer.vocab_size
    for text in TEXTS:
        assert again.tokenizer.encode(text).tolist() == run.tokenizer.encode(text).tolist()
    tokens = jnp.asarray([to_ids(run.tokenizer, TEXTS[0], 32)])
    here, there = (jax.jit(r.objective.fill)(r.params, tokens, jnp.asarray([[1]])) for r in (run, again))
    np.testing.assert_allclose(here, there, atol=1e-5)


def test_the_model_card_claims_nothing_of_an_imported_model(bert: Path, tmp_path: Path) -> None:
    config = from_huggingface(bert, tmp_path / "run")
    card = model_card(config, tmp_path / "run", 0, [("", "BertForMaskedLM", "AutoModelForMaskedLM")])
    assert "# bert\n\nA text encoder trained elsewhere and converted by jaxpretrain." in card
    assert "| data and training | not known; text is lower-cased |" in card
    assert not [
        word for word in ("pre-trained with", "steps", "trained on", "imported", "learning_rate") if word in card
    ]


def test_our_own_export_comes_back(exported, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason=TOKENIZERS)
    run, folder = exported()
    from_huggingface(folder, tmp_path / "run")
    again = load_run(tmp_path / "run")
    text = "The quick [MASK], Σ naïve dog"
    assert to_ids(again.tokenizer, text, 40) == to_ids(run.tokenizer, text, 40)
    assert again.tokenizer.decode(again.tokenizer.encode(text)) == run.tokenizer.decode(run.tokenizer.encode(text))
    tokens = jnp.asarray([to_ids(run.tokenizer, text, 40)])
    places = jnp.asarray([[3, 4]])
    here, there = (jax.jit(r.objective.fill)(r.params, tokens, places) for r in (run, again))
    np.testing.assert_allclose(there, here, atol=1e-5)


def test_what_an_export_was_last_used_with_is_left_behind(exported, tmp_path: Path) -> None:
    """transformers saves the truncation and the padding of its last call in the tokenizer's file."""
    run, folder = exported()
    values = json.loads((folder / "tokenizer.json").read_text())
    padding = {"strategy": {"Fixed": 8}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    padding["pad_to_multiple_of"] = None
    cut = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values | {"truncation": cut, "padding": padding}))
    found = foreign_tokenizer.of_folder(tmp_path, run.tokenizer.vocab_size).values
    assert found == values | {"added_tokens": [], "post_processor": None}
    pytest.importorskip("tokenizers", reason=TOKENIZERS)
    tokenizer = foreign_tokenizer.ForeignTokenizer(found)
    for text in ("fox", "the quick brown fox jumps over the lazy dog"):
        assert tokenizer.encode(text).tolist() == run.tokenizer.encode(text).tolist()


def test_electra_needs_both_networks(electra: tuple[Path, Path], tmp_path: Path) -> None:
    config = from_huggingface(electra[0], tmp_path / "run", electra[1])
    assert (config.objective.name, config.objective.divider) == ("electra", config.model.hidden // 32 or 1)
    from_huggingface(electra[0], tmp_path / "beside")  # `generator` lies beside it
    objective, params = load_weights(tmp_path / "run")
    expected = dict(np.load(electra[0] / "expected.npz"))
    ours = json.loads((tmp_path / "run" / "tokenizer.json").read_text())["model"]["vocab"]
    to_ours = np.array([ours[piece] for piece in vocabulary(67)])
    x = jax.jit(objective.encoder.apply)(
        params["encoder"],
        jnp.asarray(to_ours[expected["input_ids"]], jnp.int32),
        padding=jnp.asarray(expected["attention_mask"] == 0),
        segments=jnp.asarray(expected["token_type_ids"], jnp.int32),
    )
    scores = objective.head.apply({"params": params["head"]}, x)
    np.testing.assert_allclose(scores, expected["logits"], atol=1e-4)
    shutil.move(electra[1], tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a discriminator; give its generator too, with --generator"):
        from_huggingface(electra[0], tmp_path / "no")
    with pytest.raises(ConfigError, match="is no generator"):
        from_huggingface(electra[0], tmp_path / "no", electra[0])
    shutil.rmtree(tmp_path / "elsewhere")
    shutil.copytree(FIXTURES / "hf_electra_generator", tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="its table of tokens differs from the discriminator's"):
        from_huggingface(electra[0], tmp_path / "no", tmp_path / "elsewhere")


def test_a_generator_with_another_epsilon(electra: tuple[Path, Path], tmp_path: Path) -> None:
    path = electra[1] / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"layer_norm_eps": 1e-5}))
    with pytest.raises(ConfigError, match="generator: has layer_norm_eps 1e-05, the discriminator 1e-12; a run has"):
        from_huggingface(electra[0], tmp_path / "run")
    path.write_text(json.dumps(values | {"architectures": []}))
    with pytest.raises(ConfigError, match=r"generator: architectures=\[\]: must be one of"):
        from_huggingface(electra[0], tmp_path / "run")


def test_an_older_weights_file(bert: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=TORCH)
    import safetensors.torch

    from_huggingface(bert, tmp_path / "new")
    weights = safetensors.torch.load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    torch.save(OrderedDict(weights), bert / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    from_huggingface(bert, tmp_path / "old")
    (_, new), (_, old) = load_weights(tmp_path / "new"), load_weights(tmp_path / "old")
    np.testing.assert_array_equal(old["head"]["bias"], new["head"]["bias"])
    torch.save([1], bert / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin: must hold arrays by name"):
        from_huggingface(bert, tmp_path / "no")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("vocab.txt", None, "holds neither tokenizer.json nor a vocab.txt"),
        ("vocab.txt", "[PAD]\n[UNK]\na\n", r"the vocabulary has no \[CLS\]"),
        ("vocab.txt", "\n".join([*vocabulary(67), "more"]), "68 pieces, and the model has 67"),
        ("tokenizer.json", "{", r"tokenizer\.json: cannot be read as JSON"),
        ("tokenizer.json", "[]", r"tokenizer\.json: must hold a JSON object"),
        ("tokenizer.json", '{"model": {"type": "WordLevel"}}', "of another kind than BERT's"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 0}}}', "neither BERT's kind nor one"),
        ("tokenizer.json", '{"model": []}', "has no|of another kind"),
        ("tokenizer.json", '{"model": [1]}', r"tokenizer\.json: is damaged"),
        ("tokenizer.json", '{"model": {"type": "Unigram", "vocab": [1, 2]}}', r"tokenizer\.json: is damaged"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 0, "b": "c"}}}', r"tokenizer\.json: is damaged"),
        ("tokenizer.json", '{"model": {"type": "BPE"}, "normalizer": 3}', "neither BERT's kind nor one"),
        ("tokenizer.json", wordpiece(normalizer=[1]), r"tokenizer\.json: is damaged"),
        ("tokenizer.json", wordpiece(vocab=None), r"tokenizer\.json: is damaged"),
        ("tokenizer.json", wordpiece(vocab={"[PAD]": "0"}), r"the vocabulary has no \[UNK\]"),
        ("tokenizer.json", wordpiece(change={"the": 0.5}), "must give each piece a number of its own"),
        ("tokenizer.json", wordpiece(change={"the": "8"}), "must give each piece a number of its own"),
        ("tokenizer.json", wordpiece(change={"the": -1}), "must give each piece a number of its own"),
        ("tokenizer.json", wordpiece(change={"the": 8}), "must give each piece a number of its own"),
        ("tokenizer.json", wordpiece(change={"\ud800": 7}), r"tokenizer\.json: cannot be read as JSON"),
        ("tokenizer.json", "[" * 10**5, r"tokenizer\.json: cannot be read as JSON"),
    ],
)
def test_a_vocabulary_that_does_not_fit(bert: Path, tmp_path: Path, name: str, content: str | None, part: str) -> None:
    (bert / name).unlink(missing_ok=True)
    if content is not None:
        (bert / name).write_text(content)
    with pytest.raises(ConfigError, match=part):
        from_huggingface(bert, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_without_a_piece_are_kept(bert: Path, tmp_path: Path) -> None:
    (bert / "vocab.txt").write_text("\n".join(vocabulary(60)) + "\n", encoding="utf-8")
    assert from_huggingface(bert, tmp_path / "run").data.vocab_size == 68  # and one for <neither>


# --- the official checkpoints ---


def official(torch: Any, name: str, folder: Path, **args: Any) -> tuple[Path, dict[str, np.ndarray]]:
    """One of the parity files as fairseq would have saved it, with a dictionary."""
    arrays = dict(np.load(FIXTURES / name))
    state = {key.removeprefix("state_dict/"): x for key, x in arrays.items() if key.startswith("state_dict/")}
    numbers = dict(zip(arrays["config_names"].tolist(), arrays["config"].tolist(), strict=True))
    tensors = OrderedDict((key, torch.tensor(x, dtype=torch.float32)) for key, x in state.items())
    given = {"encoder_attention_heads": numbers["heads"], "activation_fn": "gelu", "dropout": 0.25} | args
    torch.save({"args": argparse.Namespace(**given), "model": tensors}, folder / "model.pt")
    special = 8 if name.startswith("tupe") else 6  # names that fairseq and the task add
    lines = [f"w{i} {100 - i}" for i in range(numbers["vocab"] - special)]
    (folder / "dict.txt").write_text("\n".join(lines) + "\n")
    return folder / "model.pt", arrays


@pytest.mark.parametrize("name", ["tupe_a.npz", "tupe_r.npz"])
def test_tupe(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch", reason=TORCH)
    path, arrays = official(torch, name, tmp_path)
    config = from_official(path, tmp_path / "dict.txt", tmp_path / "run")
    assert (config.model.position, config.model.dropout, config.data.vocab_size) == (name[:6], 0.25, 62)
    objective, params = load_weights(tmp_path / "run")
    ours = json.loads((tmp_path / "run" / "tokenizer.json").read_text())["model"]["vocab"]
    words = [f"w{i}" for i in range(53)]
    rows = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "<file>", "<email>", "<url>", *words, "[MASK]"]
    to_ours = np.array([ours[piece] for piece in rows])
    assert to_ours[:4].tolist() == [CLS, PAD, SEP, UNK]
    assert ours["[MASK]"] == MASK
    tokens = jnp.asarray(to_ours[arrays["tokens"]], jnp.int32)
    real = np.asarray(tokens != PAD)
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    logits = np.asarray(jax.jit(objective.fill)(params, tokens, places))[..., to_ours]
    np.testing.assert_allclose(logits[real], arrays["logits"][real], atol=1e-4, rtol=1e-4)


def test_mcbert(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=TORCH)
    path, arrays = official(torch, "mcbert.npz", tmp_path, loss_lamda=20.0)
    config = from_official(path, tmp_path / "dict.txt", tmp_path / "run")
    assert (config.objective.name, config.objective.divider, config.objective.loss_weight) == ("mcbert", 3, 20.0)
    objective, params = load_weights(tmp_path / "run")
    weights = {key.removeprefix("state_dict/"): x for key, x in arrays.items() if key.startswith("state_dict/")}
    _, expected = fairseq.mcbert(weights, 6)
    assert params["encoder"]["embedder"]["tokens"].shape == (61, 48)
    np.testing.assert_allclose(params["table_map"]["kernel"], expected["table_map"]["kernel"], rtol=1e-6)
    table, theirs = (np.asarray(p["encoder"]["embedder"]["tokens"]) for p in (params, expected))
    np.testing.assert_allclose(table[[CLS, PAD, SEP]], theirs[:3], rtol=1e-6)
    np.testing.assert_allclose(table[[MASK, SPECIAL_PIECES.index("<neither>")]], theirs[-2:], rtol=1e-6)
    assert objective.controller.config.hidden == 16


def test_official_text_is_given_in_pieces(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason=TOKENIZERS)
    torch = pytest.importorskip("torch", reason=TORCH)
    path, _ = official(torch, "tupe_a.npz", tmp_path)
    from_official(path, tmp_path / "dict.txt", tmp_path / "run")
    model = jaxpretrain.load(tmp_path / "run")
    tokenizer = model.run.tokenizer
    ids = tokenizer.encode("w0 w5  nowhere w1")
    assert [tokenizer.id_to_piece(i) for i in ids] == ["▁w0", "▁w5", "[UNK]", "▁w1"]
    assert tokenizer.decode(ids) == "w0 w5 [UNK] w1"
    assert model.embed(["w0 w1 w2"]).shape == (1, 32)
    [answer] = model.fill_mask("w0 [MASK] w2", top=4)
    assert len(answer) == 4
    assert not set(answer) & set(SPECIAL_PIECES)


@pytest.mark.parametrize(
    ("args", "lines", "part"),
    [
        ({"encoder_attention_heads": None}, None, "encoder_attention_heads is missing"),
        ({"activation_fn": "relu"}, None, "activation_fn='relu': must be 'gelu'"),
        ({"encoder_attention_heads": 5}, None, r"model\.pt: heads=5"),
        ({"encoder_attention_heads": True}, None, "encoder_attention_heads is missing"),
        ({"activation_fn": ["gelu"]}, None, r"activation_fn=\['gelu'\]: must be 'gelu'"),
        ({"dropout": "much"}, None, r"dropout='much': must be in \[0, 1\)"),
        ({"attention_dropout": 10**400}, None, r"attention_dropout=1000.*: must be in \[0, 1\)"),
        ({}, "w0 1\nw1 2\n", "makes 10 pieces, and the model has 61"),
        ({}, "w0\n", "line 1 must be a piece, a space and a count, not 'w0'"),
        ({}, "\n".join("w0 1" for _ in range(53)), "names a piece twice"),
    ],
)
def test_an_official_file_that_does_not_fit(tmp_path: Path, args: dict, lines: str | None, part: str) -> None:
    torch = pytest.importorskip("torch", reason=TORCH)
    path, _ = official(torch, "tupe_a.npz", tmp_path, **args)
    if lines is not None:
        (tmp_path / "dict.txt").write_text(lines)
    with pytest.raises(ConfigError, match=part):
        from_official(path, tmp_path / "dict.txt", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- runs in general ---


def test_the_package_opens_a_run(make_run) -> None:
    model = jaxpretrain.load(str(make_run(model__position="tupe_a")))
    vectors = model.embed(["the dog", "the quick brown fox jumps"])
    assert vectors.shape == (2, 32)
    np.testing.assert_allclose(model.embed(["the dog"], batch_size=1)[0], vectors[0], atol=1e-5)
    first, second = model.fill_mask("the [MASK] fox [MASK]", top=2)
    assert len(first) == len(second) == 2
    assert list(first.values()) == sorted(first.values(), reverse=True)
    with pytest.raises(ValueError, match=r"no \[MASK\] in the text"):
        model.fill_mask("the fox")
    with pytest.raises(TypeError, match="a list of texts"):
        model.embed("the fox")


def test_the_package_has_a_version_and_nothing_made_up() -> None:
    assert jaxpretrain.__version__ == importlib.metadata.version("jaxpretrain")
    with pytest.raises(AttributeError, match="has no attribute 'models_'"):
        _ = jaxpretrain.models_  # type: ignore[attr-defined]


def test_an_imported_model_can_be_served(bert: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers", reason=TOKENIZERS)
    from_huggingface(bert, tmp_path / "run")
    run = load_run(tmp_path / "run")
    serve(run, tmp_path / "out")
    texts = ["The dogs, playing: UNABLE!", "of the fox"]
    tokenizer = library.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    tokenizer.enable_padding()
    tokens = np.array([text.ids for text in tokenizer.encode_batch(texts)], np.int32)
    program = jax.export.deserialize(bytearray((tmp_path / "out" / "embed.stablehlo").read_bytes()))
    vectors = program.call(dict(np.load(tmp_path / "out" / "weights.npz")), tokens)
    np.testing.assert_allclose(vectors, embed(run, texts), atol=1e-5)


def test_a_config_that_does_not_fit_its_checkpoint(make_run) -> None:
    workdir = make_run()
    values = json.loads((workdir / "config.json").read_text())
    values["model"]["layers"] += 1
    (workdir / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"do not fit the checkpoint of step 0: parameter encoder/layers/\S+ is \(2,"):
        load_run(workdir)


def test_more_answers_than_pieces(make_run) -> None:
    model = jaxpretrain.load(make_run())
    [answer] = model.fill_mask("the [MASK]", top=10**6)
    assert 0 < len(answer) <= model.run.tokenizer.vocab_size


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json there"):
        jaxpretrain.load(tmp_path)


def test_training_on_is_refused(make_run) -> None:
    from etils import epath

    from jaxpretrain.training.workdir import check_resume, read_config

    workdir = make_run()
    config = read_config(epath.Path(workdir))
    assert config is not None
    host = json.loads((workdir / "checkpoints" / "00000000" / "host.json").read_text())["host"]
    with pytest.raises(ConfigError, match="init_from"):
        check_resume(config, {"corpus": "0123456789abcdef"}, epath.Path(workdir), host, 0)


def test_a_folder_with_something_in_it_is_left_alone(make_run, bert: Path, tmp_path: Path) -> None:
    workdir = make_run()
    before = sorted(path.name for path in workdir.iterdir())
    with pytest.raises(ConfigError, match="is not empty"):
        from_huggingface(bert, workdir)
    assert sorted(path.name for path in workdir.iterdir()) == before


def test_an_import_is_there_whole_or_not_at_all(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, values: dict[str, Any]) -> None:
        assert sorted(other.name for other in path.parent.iterdir()) == ["checkpoints", "config.json"]
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(imported, "write_json", full)
        with pytest.raises(OSError, match="no space left"):
            from_huggingface(bert, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]
    from_huggingface(bert, tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["checkpoints", "config.json", "tokenizer.json"]


def test_parameters_that_do_not_fit_are_named(make_run, tmp_path: Path) -> None:
    run = load_run(make_run())
    params = run.params | {"head": run.params["head"] | {"bias": np.zeros(3)}}
    with pytest.raises(ConfigError, match=r"the model to import: parameter head/bias is \(3,\) there and"):
        write_run(run.config, params, tmp_path / "run")


@pytest.mark.parametrize("values", [{}, {"model": {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "x"}}])
def test_a_tokenizer_that_the_library_refuses(bert: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    pytest.importorskip("tokenizers", reason=TOKENIZERS)
    from_huggingface(bert, tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"tokenizer\.json: is no tokenizer: ") as error:
        load_run(tmp_path / "run")
    assert "\n" not in str(error.value)


def test_without_the_library_one_line_says_what_to_install(bert: Path, tmp_path: Path, monkeypatch) -> None:
    from_huggingface(bert, tmp_path / "run")

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(foreign_tokenizer.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'jaxpretrain\[hf\]'"):
        load_run(tmp_path / "run")
