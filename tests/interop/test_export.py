"""A run in PyTorch: the same vectors and scores from the folder that was written, padding and all."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxpretrain.config import ConfigError
from jaxpretrain.data.tokenizer import CLS, PAD
from jaxpretrain.evaluation.trained import Trained, load_run, to_ids
from jaxpretrain.interop import huggingface
from jaxpretrain.interop.export import CODE, Network, export, networks
from jaxpretrain.interop.model_card import scores
from jaxpretrain.training import metrics

REASON = "needs PyTorch and transformers, which pip install 'jaxpretrain[hf]' brings"

RUNS = {
    "bert": {},
    "bert-narrow-table": {"model__embedding": 16},
    "relative": {"model__position": "relative"},
    "untied": {"model__position": "absolute_untied"},
    "tupe-a": {"model__position": "tupe_a"},
    "tupe-r": {"model__position": "tupe_r"},
    "tupe-r-plain-cls": {"model__position": "tupe_r", "model__untie_cls": False},
    "tupe-a-segments": {"model__position": "tupe_a", "model__segments": 2, "model__embedding": 24},
    "electra": {"objective__name": "electra"},
    "electra-tupe": {"objective__name": "electra", "model__position": "tupe_a"},
    "mcbert": {"objective__name": "mcbert"},
    "mcbert-tupe": {"objective__name": "mcbert", "model__position": "tupe_r"},
    "mcbert-narrow-table": {"objective__name": "mcbert", "model__embedding": 24},
}
CLASSES = {
    "bert": ["BertForMaskedLM"],
    "bert-narrow-table": ["ElectraForMaskedLM"],
    "tupe-r": ["JaxPretrainForMaskedLM"],
    "electra": ["ElectraForPreTraining", "ElectraForMaskedLM"],
    "electra-tupe": ["JaxPretrainForPreTraining", "JaxPretrainForMaskedLM"],
    "mcbert": ["ElectraModel", "BertForMaskedLM"],
    "mcbert-tupe": ["JaxPretrainModel", "JaxPretrainForMaskedLM"],
}


@pytest.fixture
def transformers():
    """The library, silent."""
    pytest.importorskip("torch", reason=REASON)
    library = pytest.importorskip("transformers", reason=REASON)
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


def sample(vocab_size: int) -> np.ndarray:
    """Ids of three texts, the longest as long as the model, the others padded."""
    ids = np.random.default_rng(1).integers(6, vocab_size, (3, 40), np.int32)
    ids[0, 21:] = ids[1, 33:] = PAD
    return ids


def reference(run: Trained, network: Network, ids: np.ndarray, segments: np.ndarray) -> Any:
    """What our network says: scores where it has a head, else vectors."""
    objective: Any = run.objective
    places = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    if network.auto == "AutoModelForMaskedLM" and not segments.any():
        return jax.jit(objective.fill)(run.params, ids, places)

    @jax.jit
    def forward(params: Any, ids: Any, segments: Any) -> Any:
        x = objective.encoder.apply(params["encoder"], ids, padding=ids == PAD, segments=segments)
        if network.auto == "AutoModelForPreTraining":
            return objective.head.apply({"params": params["head"]}, x)
        return objective.logits(params, x) if network.auto == "AutoModelForMaskedLM" else x

    return forward(run.params, ids, segments)


def answer(model: Any, ids: np.ndarray, **more: Any) -> np.ndarray:
    """What the PyTorch model says."""
    import torch

    given = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(ids != PAD).long(), **more}
    with torch.no_grad():
        output = model.eval()(**given)
    return (output["logits"] if "logits" in output else output["last_hidden_state"]).numpy()


@pytest.mark.parametrize("name", RUNS)
def test_vectors_and_scores(exported, transformers, name: str) -> None:
    run, folder = exported(**RUNS[name])
    ids = sample(run.tokenizer.vocab_size)
    segments, more = np.zeros_like(ids), {}
    if run.config.model.segments:
        import torch

        segments[:, 9:20] = 1
        more = {"token_type_ids": torch.tensor(segments)}
    found = networks(run)
    opened = []
    for network in found:
        auto = getattr(transformers, network.auto)
        place = folder / network.folder
        model, info = auto.from_pretrained(place, trust_remote_code=True, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        opened.append(type(model).__name__)
        expected = np.asarray(reference(run, network, ids, segments))
        np.testing.assert_allclose(answer(model, ids, **more), expected, atol=1e-4, rtol=1e-4)
        assert np.abs(expected).max() > 0.5  # noise large enough to tell
    assert opened == CLASSES.get(name, opened)


@pytest.mark.parametrize("name", ["bert", "tupe-r", "electra", "mcbert-tupe"])
def test_padding_changes_nothing(exported, transformers, name: str) -> None:
    run, folder = exported(**RUNS[name])
    ids = sample(run.tokenizer.vocab_size)
    network = networks(run)[0]
    model = getattr(transformers, network.auto).from_pretrained(folder / network.folder, trust_remote_code=True)
    together = answer(model, ids)
    alone = answer(model, ids[:1, :21])
    np.testing.assert_allclose(together[0, :21], alone[0], atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "tupe-r", "electra", "mcbert"])
def test_the_encoder_and_a_classifier_open_it(exported, transformers, name: str) -> None:
    """`AutoModel` has the run's vectors; a classifier trains on them."""
    import torch

    run, folder = exported(**RUNS[name])
    network = networks(run)[0]
    ids = sample(run.tokenizer.vocab_size)
    model = transformers.AutoModel.from_pretrained(folder / network.folder, trust_remote_code=True)
    vectors = run.encode(ids)
    np.testing.assert_allclose(answer(model, ids), vectors, atol=1e-4)
    auto = transformers.AutoModelForSequenceClassification
    classifier = auto.from_pretrained(folder / network.folder, trust_remote_code=True, num_labels=3)
    output = classifier(torch.tensor(ids).long(), labels=torch.tensor([0, 1, 2]))
    assert output.logits.shape == (3, 3)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in classifier.parameters() if p.grad is not None)
    assert np.array_equal(  # loading left the trained weights alone
        classifier.get_input_embeddings().weight.detach().numpy(), run.params["encoder"]["embedder"]["tokens"]
    )


@pytest.mark.parametrize("name", ["tupe-a", "tupe-r"])
def test_our_classifier_learns(exported, transformers, name: str) -> None:
    """A few steps of a plain loop, on texts in which a piece occurs or does not; every weight takes part."""
    import torch

    run, folder = exported(**RUNS[name])
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(folder, trust_remote_code=True, num_labels=2).train()
    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(7, run.tokenizer.vocab_size, (64, 40), np.int32)
    labels = torch.arange(64) % 2
    ids[:, 0], ids[1::2, 5], ids[:32, 30:] = CLS, 6, PAD
    batch = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(ids != PAD).long()}
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    assert {"query.weight", "table.weight"} <= {key.split("positions.")[-1] for key in before}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        output = model(**batch, labels=labels)
        output.loss.backward()
        for key, weight in model.named_parameters():
            assert weight.grad is not None, key
            assert weight.grad.isfinite().all(), key
        if not losses:
            slopes = {key: weight.grad.abs().max().item() for key, weight in model.named_parameters()}
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[0] > 0.5
    assert max(losses[-3:]) < 0.1
    # A word's key may move along with all other keys of a head: no weight of the attention changes by it.
    assert not [key for key, slope in slopes.items() if slope < 1e-6 and not key.endswith("key.bias")]
    assert not [key for key, weight in model.named_parameters() if torch.equal(weight, before[key])]


@pytest.mark.parametrize(
    ("labels", "shape", "options"),
    [
        ([1.0, 2.0, 0.5], (3, 1), {"num_labels": 1}),
        ([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], (3, 2), {"num_labels": 2}),
        ([1, 0, 1], (3, 2), {"num_labels": 2}),
    ],
)
def test_losses_of_our_classifier(exported, transformers, labels: Any, shape: tuple, options: dict) -> None:
    import torch

    run, folder = exported(**RUNS["tupe-a"])
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(folder, trust_remote_code=True, **options).eval()
    ids, target = torch.tensor(sample(run.tokenizer.vocab_size)).long(), torch.tensor(labels)
    loss, logits = model(ids, labels=target, return_dict=False)[:2]
    assert logits.shape == shape
    if options["num_labels"] == 1:
        expected = ((logits[:, 0] - target) ** 2).mean()
    elif target.is_floating_point():
        expected = torch.nn.BCEWithLogitsLoss()(logits, target)
    else:
        expected = -logits.log_softmax(-1)[torch.arange(3), target].mean()
    torch.testing.assert_close(loss, expected)


def test_losses_of_pre_training(exported, transformers) -> None:
    import torch

    run, folder = exported(**RUNS["electra-tupe"])
    ids = torch.tensor(sample(run.tokenizer.vocab_size)).long()
    mask = (ids != PAD).long()
    generator = transformers.AutoModelForMaskedLM.from_pretrained(folder / "generator", trust_remote_code=True).eval()
    labels = torch.full_like(ids, -100)
    labels[:, 3:5] = 7
    output = generator(ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(output.loss, -output.logits.log_softmax(-1)[:, 3:5, 7].mean())
    auto = transformers.AutoModelForPreTraining
    model = auto.from_pretrained(folder / "discriminator", trust_remote_code=True).eval()
    replaced = torch.randint(2, ids.shape, generator=torch.Generator().manual_seed(0))
    output = model(ids, attention_mask=mask, labels=replaced)
    losses = torch.nn.functional.softplus(output.logits * (1 - 2 * replaced))
    torch.testing.assert_close(output.loss, losses[mask == 1].mean())


def test_our_model_says_what_is_wrong(exported, transformers) -> None:
    import torch

    _, folder = exported(**RUNS["tupe-r"])
    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with pytest.raises(ValueError, match="41 tokens: the model has positions for 40"):
        model(torch.zeros(1, 41, dtype=torch.long))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="output_attentions"):
        model(torch.zeros(1, 4, dtype=torch.long), output_attentions=True)
    ids = torch.tensor([[2, 9, 8, 3]])
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
        embedded = model(inputs_embeds=model.get_input_embeddings()(ids)).last_hidden_state
        [plain] = model(ids, return_dict=False)
    assert len(output.hidden_states) == 3
    torch.testing.assert_close(embedded, output.last_hidden_state)
    torch.testing.assert_close(plain, output.last_hidden_state)


def test_our_model_survives_saving(exported, transformers, tmp_path: Path) -> None:
    run, folder = exported(**RUNS["tupe-r"])
    ids = sample(run.tokenizer.vocab_size)
    auto = transformers.AutoModelForMaskedLM
    model = auto.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path, trust_remote_code=True)
    np.testing.assert_array_equal(answer(again, ids), answer(model, ids))


@pytest.mark.parametrize("name", ["bert", "tupe-a", "tupe-a-segments", "electra"])
def test_the_tokenizer_of_the_folder(exported, transformers, name: str) -> None:
    run, folder = exported(**RUNS[name])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / networks(run)[0].folder, trust_remote_code=True)
    texts = ["The [MASK] fox.", "", "dog " * 100, "naïve Σ"]
    found = tokenizer(texts, truncation=True, padding=True, return_tensors="np")
    for text, row in zip(texts, found["input_ids"], strict=True):
        assert row[row != PAD].tolist() == to_ids(run.tokenizer, text, 40)
    assert found["attention_mask"].tolist() == (found["input_ids"] != PAD).astype(int).tolist()
    assert ("token_type_ids" in found) == (run.config.model.segments > 0)
    assert (tokenizer.mask_token_id, tokenizer.model_max_length, tokenizer.is_fast) == (4, 40, True)
    pair = tokenizer("the dog", "the fox")["input_ids"]
    assert pair == [2, *run.tokenizer.encode("the dog"), 3, *run.tokenizer.encode("the fox"), 3]


def test_plain_text_can_be_had_too(exported, transformers) -> None:
    """As in a corpus, where no typed name is a special piece."""
    run, folder = exported()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "[CLS] the [MASK] fox [SEP]"
    ids = tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
    assert ids == run.tokenizer.encode(text).tolist()


# --- without PyTorch ---


@pytest.mark.parametrize("name", ["bert", "bert-narrow-table", "electra"])
def test_what_is_exported_can_be_read_back(exported, name: str) -> None:
    run, folder = exported(**RUNS[name])
    for network in networks(run):
        config, params = huggingface.load(folder / network.folder)
        assert (config.hidden, config.max_positions) == (network.config.hidden, 40)
        table = params["encoder"]["embedder"].pop("segments")
        assert not table.any()
        import chex

        chex.assert_trees_all_equal(params["encoder"], {**network.encoder, "positions": {}})
        chex.assert_trees_all_equal(params["head"], network.head)


def test_the_files(exported) -> None:
    _, folder = exported(**RUNS["tupe-r"])
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert {path.name for path in folder.iterdir()} == names | {"README.md", "jaxpretrain.json", *CODE}
    values = json.loads((folder / "config.json").read_text())
    assert values["position"] == "tupe_r"
    assert (values["relative_buckets"], values["relative_max_distance"]) == (16, 20)
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


def test_stock_models_bring_no_code(exported) -> None:
    _, folder = exported()
    assert not list(folder.glob("*.py"))
    assert "auto_map" not in json.loads((folder / "config.json").read_text())


def test_the_model_card_tells_of_the_run(make_run, tmp_path: Path) -> None:
    workdir = make_run(model__position="tupe_a", train__batch_size=4)
    lines = {0: {"eval/mlm_loss": 5.25, "eval/mlm_accuracy": 0.125, "train/loss": 5.0}, 7: {"eval/mlm_loss": 1.0}}
    metrics.add_to_lines(workdir, lines)
    export(load_run(workdir), workdir, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| mlm_loss | 5.2500 |" in card
    assert "1.0000" not in card  # measured after the checkpoint
    assert "train/loss" not in card
    assert "TUPE-A" in card
    assert "`python-docs`, lower-cased" in card
    assert '"position": "tupe_a"' in card


def test_scores_of_tasks_are_no_held_out_scores(tmp_path: Path) -> None:
    of_tasks = {"eval/glue/MRPC": 0.7, "eval/glue_rate/MRPC": 2e-5, "eval/probe/MRPC": 0.68}
    metrics.add_to_lines(tmp_path, {30: {"eval/mlm_loss": 2.5, "eval/glue/MRPC": 0.6}, 35: of_tasks})
    assert scores(tmp_path, 35) == ["At step 30:\n", "| metric | value |", "| --- | --- |", "| mlm_loss | 2.5000 |"]


def test_nothing_is_overwritten(make_run, tmp_path: Path) -> None:
    workdir = make_run()
    run = load_run(workdir)
    (tmp_path / "empty").mkdir()
    export(run, workdir, tmp_path / "empty")
    with pytest.raises(ConfigError, match="is not empty"):
        export(run, workdir, tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        export(run, workdir, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]
