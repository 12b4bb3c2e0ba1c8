"""Asking a trained model: masks filled, sentences embedded, mistakes in one line."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.flags import FLAGS
from absl.testing import flagsaver

from jaxpretrain import predict
from jaxpretrain.config import ConfigError
from jaxpretrain.data.tokenizer import MASK, NEITHER, SPECIAL_PIECES
from jaxpretrain.evaluation import trained
from jaxpretrain.evaluation.trained import shown
from jaxpretrain.models.encoder import Encoder
from jaxpretrain.predict import embed, fill_masks, load_run, nearest_notes, print_quiz, print_rows, quiz, to_ids
from jaxpretrain.training.workdir import notes_of_run
from tests.commands.conftest import NOTES


@pytest.fixture(scope="module")
def model(finished: Path):
    return load_run(finished)


@pytest.fixture(scope="module")
def questioner(shared_tmp: Path, exclusive, tiny, run_train) -> Path:
    """A run of MC-BERT with notes."""
    fields = {"train.steps": 10, "eval.every": 0, "objective.name": "mcbert", "objective.divider": 1}
    fields |= {"objective.mask_share": 1.0, "objective.random_share": 0.0}
    workdir = shared_tmp / "questioner"
    with exclusive("questioner"):
        if not (workdir / "DONE").exists():
            run_train(tiny(**fields, **NOTES), workdir)
    return workdir


@pytest.fixture(scope="module")
def sentences(text: Path) -> list[str]:
    found = [line for line in text.read_text().splitlines() if line][:7]
    return [line[: 10 + 7 * i] for i, line in enumerate(found)]


def test_masks_are_filled_with_pieces_and_probabilities(model, sentences):
    answers = fill_masks(model, [f"{sentences[0]} [MASK] x [MASK].", "nothing", "[MASK]"], top=3)
    assert [len(answer) for answer in answers] == [2, 0, 1]
    for answer in [*answers[0], *answers[2]]:
        probabilities = list(answer.values())
        assert len(answer) == 3
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1
        assert not set(answer) & set(SPECIAL_PIECES)


def test_pieces_that_read_alike_count_as_one(model, monkeypatch: pytest.MonkeyPatch):
    size = model.tokenizer.vocab_size
    [[apart]] = fill_masks(model, ["[MASK]"], top=size)
    monkeypatch.setattr(trained, "shown", lambda tokenizer, piece: shown(tokenizer, piece)[-1])
    [[alike]] = fill_masks(model, ["[MASK]"], top=size)
    assert len(alike) < len(apart)
    assert sum(alike.values()) == pytest.approx(sum(apart.values()))
    assert list(alike.values()) == sorted(alike.values(), reverse=True)


def test_a_typed_mask_is_the_special_piece(model):
    assert to_ids(model.tokenizer, "a [MASK] b", 16).count(MASK) == 1


def test_a_batch_changes_no_vector(model, sentences):
    alone = np.concatenate([embed(model, [sentence]) for sentence in sentences])
    assert alone.shape == (7, 32)
    assert len({row.tobytes() for row in alone}) == 7
    for size in (2, 7):
        np.testing.assert_allclose(embed(model, sentences, batch_size=size), alone, atol=2e-5)


def test_a_batch_changes_no_answer(model, sentences):
    texts = [f"{sentence} [MASK]" for sentence in sentences[:3]]
    together = fill_masks(model, texts)
    for text, answer in zip(texts, together, strict=True):
        [alone] = fill_masks(model, [text])
        assert alone[0] == pytest.approx(answer[0], rel=1e-3)


def test_text_longer_than_the_model_is_cut(model):
    assert embed(model, ["word " * 500]).shape == (1, 32)


def test_a_mask_where_the_text_is_cut(model):
    with pytest.raises(ConfigError, match=r"text 2, .*: \[MASK\] number 2 lies beyond the 16 tokens"):
        fill_masks(model, ["a [MASK]", "[MASK] " + "word " * 500 + "[MASK]"])


def test_a_step_can_be_asked_for(finished: Path):
    assert load_run(finished, 10).step == 10


def test_no_run_in_the_folder(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_run(tmp_path)


# --- the quiz of a meta controller ---


def test_questions_are_about_the_pieces(questioner: Path, sentences):
    model = load_run(questioner)
    rows = quiz(model, sentences[-1])
    pieces = [model.tokenizer.id_to_piece(piece) for piece in to_ids(model.tokenizer, sentences[-1], 16)]
    assert [row["piece"] for row in rows] == pieces[1:-1]
    assert all(row["candidates"][0] == SPECIAL_PIECES[NEITHER] for row in rows)
    assert {len(row["candidates"]) for row in rows} == {10}
    changed = [row for row in rows if row["shown"] != row["piece"]]
    assert 0 < len(changed) < len(rows)
    assert changed == [row for row in rows if row["answer"] == 1]
    assert all(row["candidates"][1] == (row["piece"].removeprefix("▁") or "▁") for row in changed)
    assert {row["answer"] for row in rows} == {0, 1}
    assert {row["choice"] for row in rows} <= set(range(10))


def test_a_seed_draws_the_questions(questioner: Path, sentences):
    model = load_run(questioner)
    first, again, other = (quiz(model, sentences[-1], seed) for seed in (1, 1, 2))
    assert again == first
    assert other != first


def test_only_a_meta_controller_sets_questions(model, sentences):
    with pytest.raises(ConfigError, match=r"^--quiz: objective\.name='mlm' sets no questions; mcbert does$"):
        quiz(model, sentences[-1])


def test_a_printed_quiz_marks_what_was_changed_and_what_is_wrong(capsys):
    candidates = ["<neither>", "sea", "ship"]
    print_quiz(
        "The sea",
        [
            {"piece": "▁the", "shown": "▁the", "candidates": candidates, "answer": 0, "choice": 0},
            {"piece": "▁sea", "shown": "▁ship", "candidates": candidates, "answer": 1, "choice": 2},
        ],
    )
    text, *rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert text == "The sea"
    assert rows == [
        "✓ ▁the chose <neither> not sea, ship",
        "✗ ▁ship (was ▁sea) chose ship not <neither>, sea",
    ]


# --- as a command ---


def test_it_prints_what_it_found(finished: Path, command, run):
    done = run(command("predict", "--workdir", finished, "--top", 2, "a [MASK] b"))
    assert done.code == 0, done.err
    first, second = done.out.splitlines()
    assert first == "a [MASK] b"
    assert second.count("%") == 2


def test_json_from_standard_input(finished: Path, command, run):
    done = run(command("predict", "--workdir", finished, "--json"), stdin="a [MASK]\n[MASK] [MASK] b\n")
    assert done.code == 0, done.err
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer["text"] for answer in answers] == ["a [MASK]", "[MASK] [MASK] b"]
    assert [len(answer["masks"]) for answer in answers] == [1, 2]


@pytest.mark.parametrize("given", ["argument", "standard input"])
def test_text_that_is_not_utf8(given: str, finished: Path, command, run):
    text, flags = "caf\udce9 [MASK]", ["--workdir", finished, "--json"]
    if given == "argument":
        done = run(command("predict", *flags, text))
    else:
        done = run(command("predict", *flags), stdin=f"{text}\r\n", errors="surrogateescape")
    assert done.code == 0, done.err
    assert json.loads(done.out)["text"] == "caf\ufffd [MASK]"


def test_labels_and_ids_come_out_as_they_went_in(capsys):
    rows = [
        {"id": 'a\tb\r"c"\n', "label": "x\ty", "probabilities": {"x\ty": 0.75, "z": 0.25}},
        {"id": "\u2028é", "label": "z", "probabilities": {"x\ty": 0.25, "z": 0.75}},
    ]
    print_rows(rows)
    found = list(csv.reader(io.StringIO(capsys.readouterr().out, newline=""), "excel-tab"))
    expected = [[row["id"], row["label"], "0.7500"] for row in rows]
    assert found == [["id", "label", "probability"], *expected]
    print_rows([{"id": "1\t2", "score": 0.5}])
    assert capsys.readouterr().out == 'id\tscore\n"1\t2"\t0.5000\n'


def test_programs_are_made_once(finished: Path, monkeypatch: pytest.MonkeyPatch):
    """Encoding is traced when a program is made, not when it is called again with texts of the same length."""
    model, traced = load_run(finished), []
    apply = Encoder.apply
    monkeypatch.setattr(Encoder, "apply", lambda *args, **named: traced.append(1) or apply(*args, **named))
    first, again = (embed(model, ["one more"]) for _ in range(2))
    answers = [fill_masks(model, ["one [MASK]"], top=3) for _ in range(2)]
    assert len(traced) == 2
    np.testing.assert_array_equal(first, again)
    assert answers[0] == answers[1]
    other = replace(model, params=jax.tree.map(jnp.zeros_like, model.params))
    assert not np.array_equal(embed(other, ["one more"]), first)


def test_vectors(finished: Path, command, run):
    done = run(command("predict", "--workdir", finished, "--json", "--embed", "one", "another one"))
    assert done.code == 0, done.err
    answers = [json.loads(line) for line in done.out.splitlines()]
    expected = embed(load_run(finished), ["one", "another one"])
    np.testing.assert_allclose([answer["vector"] for answer in answers], expected, atol=1e-4)


def test_a_quiz(questioner: Path, sentences, command, run):
    flags = ["--workdir", questioner, "--quiz", "--seed=3"]
    done = run(command("predict", *flags, "--json", *sentences[:2]))
    assert done.code == 0, done.err
    answers, model = [json.loads(line) for line in done.out.splitlines()], load_run(questioner)
    for answer, sentence in zip(answers, sentences[:2], strict=True):
        assert answer == {"text": sentence, "questions": quiz(model, sentence, seed=3)}
    done = run(command("predict", *flags, sentences[0]))
    assert done.code == 0, done.err
    text, *rows = done.out.splitlines()
    assert text == sentences[0]
    assert len(rows) == len(answers[0]["questions"])


def test_nearest_notes(questioner: Path, command, run):
    words, _, written = notes_of_run(questioner)
    known = [words[i] for i in np.flatnonzero(written >= 0)[:2]]
    done = run(command("predict", "--workdir", questioner, "--notes", "--json", "--top=3", *known))
    assert done.code == 0, done.err
    answers = [json.loads(line) for line in done.out.splitlines()]
    expected = nearest_notes(questioner, known, top=3)
    assert [answer["word"] for answer in answers] == known
    for answer, one in zip(answers, expected, strict=True):
        assert list(answer["nearest"]) == list(one["nearest"])
        assert len(answer["nearest"]) == 3
        assert answer["nearest"] == pytest.approx(one["nearest"])


def test_sentences_at_a_time(finished: Path, sentences, monkeypatch: pytest.MonkeyPatch):
    """Read off the batches: the answers do not depend on it."""
    sizes, batches = [], trained.batches

    def watched(*args: Any) -> list[np.ndarray]:
        found = batches(*args)
        sizes.append([len(tokens) for tokens in found])
        return found

    monkeypatch.setattr(trained, "batches", watched)
    for way in ("--embed", "--top=1"):
        with flagsaver.flagsaver():
            texts = [f"{sentence[:10]} [MASK]" for sentence in sentences]
            predict.main(FLAGS(["predict", f"--workdir={finished}", "--batch_size=3", way, *texts]))
    FLAGS.unparse_flags()
    assert sizes == [[3, 3, 1]] * 2


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--workdir", "/nowhere", "a [MASK]"], "/nowhere"),
        (["a [MASK]"], "workdir"),
        (["--workdir", "RUN", "no mask here"], "[MASK]"),
        (["--workdir", "RUN", "--step=11", "a [MASK]"], "00000011"),
        (["--workdir", "RUN", "--top=0", "a [MASK]"], "top"),
        (["--workdir", "RUN", "--batch_size=0", "a [MASK]"], "batch_size"),
        (["--workdir", "RUN", "--quiz", "a word"], "objective.name='mlm'"),
        (["--workdir", "RUN", "--notes", "word"], "notes.enabled"),
    ],
)
def test_a_wrong_command(args: list[str], part: str, finished: Path, command, run):
    args = [str(finished) if arg == "RUN" else arg for arg in args]
    assert part in run(command("predict", *args)).error()


def test_no_text_at_all(finished: Path, command, run):
    run(command("predict", "--workdir", finished), stdin="").error()
