"""Metrics against the libraries' published examples and hand arithmetic; held-out scores against the training's own; task laws from a known one."""

import csv
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import true_loss, write_results

from analysis import fit, read_runs
from analysis.model_points import models_figure
from analysis.task_laws import write_task_laws
from scaling.byte_tokenizer import byte_tokenizer
from scaling.cli.main import main
from scaling.evaluation.held_out import foreign_scores, held_out_scores, windows_by_domain
from scaling.evaluation.metrics import METRICS, Item, distinct, exact_match, mean_score, normalised_answer, token_f1
from scaling.evaluation.ratings import sign_test, wilson_interval, win_rate, write_sheet
from scaling.evaluation.tasks import Exercise, answers, read_exercises, scores
from scaling.huggingface.reading import load_folder
from scaling.huggingface.writing import save_folder
from scaling.language_model import open_model, read_resolved
from scaling.text_codec import make_codec

SYSTEM = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = [
    ("The dog bit the man.", "The dog had bit the man."),
    ("It was not unexpected.", "No one was surprised."),
    ("The man bit him first.", "The man had bitten the dog."),
]


def items():
    return [Item(text, references) for text, references in zip(SYSTEM, REFERENCES, strict=True)]


def test_bleu_and_chrf_are_those_of_sacrebleus_readme():
    pytest.importorskip("sacrebleu", reason="make extras")
    assert METRICS["bleu"](items()).value == pytest.approx(48.53, abs=0.005)
    assert METRICS["chrf"](items()).value == pytest.approx(59.73, abs=0.005)


def test_rouge_by_hand():
    pytest.importorskip("rouge_score", reason="make extras")
    one = [Item("The quick brown dog jumps on the log.", ("The quick brown fox jumps over the lazy dog",))]
    assert METRICS["rouge1"](one).value == pytest.approx(12 / 17)  # 6 words of 8 and 9
    assert METRICS["rouge2"](one).value == pytest.approx(4 / 15)  # the quick, quick brown
    assert METRICS["rougeL"](one).value == pytest.approx(10 / 17)  # the quick brown jumps the


def test_rouge_is_what_its_authors_took_from_rouge_155():
    """google-research/rouge, rouge_scorer_test.py."""
    pytest.importorskip("rouge_score", reason="make extras")
    assert METRICS["rouge1"]([Item("testing", ("testing one two",))]).value == pytest.approx(1 / 2)
    for text in ("testing one", "testing two"):
        assert METRICS["rougeL"]([Item(text, ("testing one two",))]).value == pytest.approx(4 / 5)
    assert METRICS["rouge2"]([Item("testing one", ("testing one two",))]).value == pytest.approx(2 / 3)


def test_a_missing_extra_gets_one_line(finished_tiny, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "sacrebleu" else find(name, *rest))
    assert main(["evaluate", str(finished_tiny), "--metrics", "bleu", "--continuations", "2"]) == 2
    assert "bleu needs the package sacrebleu: pip install 'scaling-harness[evaluate]'" in capsys.readouterr().err


def test_answers_are_compared_as_squad_does():
    assert normalised_answer(" The Denver, Broncos!\n") == "denver broncos"
    assert exact_match("the Broncos", "Broncos.") == 1 and exact_match("Broncos", "Denver Broncos") == 0
    assert token_f1("Denver Broncos", "the Broncos") == pytest.approx(2 / 3)
    found = METRICS["f1"]([Item("Broncos", ("Denver Broncos", "broncos")), Item("x", ("y",))])
    assert (found.value, found.std_error, found.n) == (0.5, 0.5, 2)


def test_distinct_and_repetition_by_hand():
    assert distinct("a b a b a".split(), 2) == 0.5 and distinct([1], 2) == 1.0
    looped = Item("ha ha ha ha", ("",), tokens=(1, 2, 3, 4) * 5)
    assert METRICS["repetition_4"]([looped]).value == pytest.approx(1 - 4 / 17)
    assert METRICS["distinct_1"]([looped]).value == 0.25
    assert mean_score([1, 2, 4]).std_error == pytest.approx(math.sqrt(7 / 3 / 3))


def test_held_out_scores_are_the_trainings_and_an_exports(finished_tiny, tmp_path):
    model, resolved = open_model(finished_tiny), read_resolved(finished_tiny)
    from scaling.corpus import load

    data = model.run.trunk.data
    corpus = load(data.corpus, content_hash=data.corpus_hash, options=resolved.sweep.text)
    (_, windows), *_ = windows_by_domain(corpus, model.run)
    found = held_out_scores(model, windows)
    for name, key in (("loss", "loss"), ("bits_per_byte", "bits_per_byte")):
        assert found[name].value == pytest.approx(model.result[key], rel=1e-5)
    assert found["loss"].std_error == pytest.approx(model.result["loss_se"], rel=1e-3)
    assert found["perplexity"].value == pytest.approx(math.exp(model.result["loss"]), rel=1e-5) and 0.1 < found["accuracy"].value < 1
    save_folder(model, tmp_path / "out", tokenizer=byte_tokenizer(), card="")
    other = foreign_scores(load_folder(tmp_path / "out"), windows, make_codec("bytes"))
    for name, score in found.items():
        assert other[name].value == pytest.approx(score.value, rel=1e-5), name
        assert other[name].std_error == pytest.approx(score.std_error, rel=1e-2), name


def test_exercises_of_a_file_are_scored_by_task_domain_and_language(finished_tiny, tmp_path):
    lines = [
        {"task": "question_answering", "prompt": f"Q{n} ", "references": ["abc"], "domain": "easy" if n < 2 else "hard", "tokens": 4}
        for n in range(4)
    ] + [{"task": "translation", "prompt": "de: ja\nen:", "references": ["yes"], "language": "de", "stop": ["\n"], "tokens": 6}]
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    exercises = read_exercises(path)
    model = open_model(finished_tiny)
    from scaling.decoding.strategies import Greedy

    found = list(scores(exercises, answers(model, exercises, Greedy(), seed=0), ["exact_match", "f1"]))
    parts = {(one.task, one.domain, one.language): one.score for one in found if one.metric == "f1"}
    assert set(parts) == {("question_answering", domain, "all") for domain in ("all", "easy", "hard")}
    assert parts["question_answering", "all", "all"].n == 4
    perfect = [Item(one.references[0], tuple(one.references)) for one in exercises]
    assert all(one.score.value == 1 for one in scores(exercises, perfect, ["exact_match", "f1"]))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "x"}', "missing required field `references`"),
        ('{"prompt": "x", "references": ["y"], "task": "poetry"}', "task = 'poetry'; allowed: continuation"),
        ('{"prompt": "x", "references": []}', "references is empty"),
        ("nonsense", "tasks.jsonl:1:"),
    ],
)
def test_bad_exercises_get_one_line(tmp_path, capsys, finished_tiny, line, words):
    (tmp_path / "tasks.jsonl").write_text(line + "\n")
    assert main(["evaluate", str(finished_tiny), "--tasks", str(tmp_path / "tasks.jsonl")]) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_the_command_writes_the_table_and_the_sheet_comes_back(finished_tiny, tmp_path, capsys):
    root = str(finished_tiny)
    assert main(["evaluate", root, "--metrics", "accuracy,perplexity,repetition_4", "--continuations", "6"]) == 0
    table = pd.read_csv(finished_tiny / "evaluation.csv").query("source == 'run'")
    assert len(table) == 2 * 3 and set(table["metric"]) == {"accuracy", "perplexity", "repetition_4"}
    assert main(["evaluate", root, "--metrics", "accuracy", "--continuations", "0"]) == 0
    again = pd.read_csv(finished_tiny / "evaluation.csv").query("source == 'run'")
    assert len(again) == 6 and sorted(again["value"]) == sorted(table["value"])
    names = list(dict.fromkeys(table["model"]))
    capsys.readouterr()
    assert main(["evaluate", root, "--run", names[0], "--run", names[1], "--sheet", "--continuations", "8"]) == 0
    page = capsys.readouterr().out.strip()
    text = Path(page).read_text(encoding="utf-8")
    assert names[0] not in text and text.count("<fieldset") == 8
    key = json.loads(Path(page.replace("sheet-", "key-").replace(".html", ".json")).read_text())
    ratings = tmp_path / "ratings.csv"
    with open(ratings, "w", newline="") as file:  # the rater prefers the first model 6 times, the second once, cannot tell once
        writer = csv.writer(file)
        writer.writerow(["sheet", "item", "choice", "rater"])
        sheet = page.rpartition("sheet-")[2].removesuffix(".html")
        for item, swapped in enumerate(key["swapped"]):
            first = "right" if swapped else "left"
            choice = "tie" if item == 7 else first if item < 6 else {"left": "right", "right": "left"}[first]
            writer.writerow([sheet, item, choice, "ab"])
    assert main(["evaluate", root, "--ratings", str(ratings)]) == 0
    out = capsys.readouterr().out
    assert "0.8125" in out and "0.125" in out  # 6.5 of 8; sign test of 6 to 1
    assert pd.read_csv(finished_tiny / "ratings" / "win-rate-ratings.csv")["rate"].tolist() == [0.8125]
    assert main(["evaluate", root, "--metrics", "beauty"]) == 2 and "allowed: loss, perplexity" in capsys.readouterr().err


def test_the_sheet_in_a_browser_hides_who_is_who_and_saves_the_choices(chromium, tmp_path):
    answers = [("<b>one</b>", "two"), ("three", "four"), ("five", "six")]
    sheet = write_sheet(tmp_path, names=("first", "second"), prompts=["a\n<i>", "b", "c"], answers=answers, seed=1)
    page, problems, fetched = chromium.new_page(), [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(sheet.as_uri())
    assert sorted(page.locator(".pair pre").all_text_contents()) == sorted(text for pair in answers for text in pair)
    page.locator("#rater").fill('A "B", C')
    for item, (one, _) in enumerate(answers[:2]):  # the first model is better; the last item is left open
        left = page.locator("fieldset").nth(item).locator(".pair pre").first.text_content() == one
        page.locator(f'input[name="i{item}"][value="{"left" if left else "right"}"]').check()
    assert page.locator("#left").text_content() == "1 not rated yet"
    with page.expect_download() as waiting:
        page.locator("#save").click()
    waiting.value.save_as(tmp_path / "ratings.csv")
    found = win_rate(tmp_path / "ratings.csv", tmp_path)
    assert (found.first, found.wins, found.losses, found.ties) == ("first", 2, 0, 0)
    assert not problems and all(url.startswith(("file:", "blob:")) for url in fetched)


def test_a_folder_stands_beside_the_runs_on_their_text(finished_tiny, tmp_path, capsys):
    out, root = str(tmp_path / "other"), str(finished_tiny)
    run = open_model(finished_tiny)
    save_folder(run, tmp_path / "other", tokenizer=byte_tokenizer(), card="")
    assert main(["evaluate", out, "--on", root, "--metrics", "loss,accuracy", "--continuations", "0"]) == 0
    assert "no picture beside the law" in capsys.readouterr().err  # two runs are too few for a law
    rows = pd.read_csv(finished_tiny / "evaluation.csv").query("source == 'folder'")
    assert list(rows["metric"]) == ["loss", "accuracy"] and set(rows["model"]) == {"other"}
    (model,) = pd.read_csv(finished_tiny / "models.csv").to_dict("records")
    assert model["loss"] == pytest.approx(run.result["loss"], rel=1e-5)
    for arguments, words in [
        ([out], "--on results/NAME"),
        ([root, "--on", root], "--on is for a Hugging Face folder"),
        ([str(finished_tiny / "runs"), "--on", root], "neither a sweep's results folder"),
        ([root, "--sheet"], "--sheet compares two runs"),
        ([root, "--ratings", str(tmp_path / "none.csv")], "not readable as CSV"),
    ]:
        assert main(["evaluate", *arguments]) == 2 and words in capsys.readouterr().err


def test_the_picture_of_the_law_has_the_other_models_in_it(tmp_path):
    root = write_results(tmp_path / "results")
    pd.DataFrame([{"model": "theirs", "params_non_embedding": 3e5, "params_total": 4e5, "loss": 1.4, "loss_se": 0.02}]).to_csv(
        root / "models.csv", index=False
    )
    (ax, *_) = models_figure(fit("chinchilla", read_runs(root)), root).axes
    assert "theirs" in [text.get_text().strip() for text in ax.texts]
    assert any(np.allclose(line.get_xydata(), [[3e5, 1.4]]) for line in ax.lines)


def test_intervals_of_win_rates_are_published_ones():
    low, high = wilson_interval(81 / 263, 263)  # Newcombe 1998, table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert sign_test(5, 5) == 1.0 and sign_test(6, 1) == pytest.approx(0.125)


def test_task_laws_find_the_curve_that_made_the_metric(tmp_path, capsys):
    root = write_results(tmp_path / "results")
    runs = pd.read_csv(root / "runs.csv").query("status == 'done'")
    rng = np.random.default_rng(0)
    rows = []
    for run in runs.itertuples():
        truths = {"accuracy": 1 / (1 + math.exp(4.0 * (run.loss - 1.5))), "chrf": 40.0 * run.loss**-2}
        for metric, value in truths.items():
            rows.append([run.run_id, "run", "made_up", "all", "all", metric, value * (1 + 0.002 * rng.standard_normal()), 0.01, 64, "", ""])
    columns = "model,source,task,domain,language,metric,value,std_error,n,strategy,seed".split(",")
    pd.DataFrame(rows, columns=columns).to_csv(root / "evaluation.csv", index=False)
    write_task_laws(root)
    table = pd.read_csv(root / "task_laws.csv").query("x == 'loss'")
    chosen = table[table["chosen"]]
    assert dict(zip(chosen["metric"], chosen["form"])) == {"accuracy": "sigmoid", "chrf": "power"}
    found = chosen.set_index(["metric", "parameter"])
    for key, truth in {
        ("accuracy", "k"): 4.0,
        ("accuracy", "x0"): 1.5,
        ("chrf", "a"): 40.0,
        ("chrf", "b"): -2.0,
    }.items():
        row = found.loc[key]
        assert row["estimate"] == pytest.approx(truth, rel=0.05) and row["ci_low"] - 0.02 * abs(truth) < truth < row[
            "ci_high"
        ] + 0.02 * abs(truth), key
    assert (chosen["largest_out_error"] < [0.02 * 0.9 if metric == "accuracy" else 0.02 * 40 for metric in chosen["metric"]]).all()
    assert chosen["two_step_error"].notna().all() and (chosen["n_runs"] == 32).all()
    assert main(["predict", str(root), "--params", "500k", "--tokens", "5M", "--bootstrap", "100", "--tasks", "--format", "json"]) == 0
    (there,) = json.loads(capsys.readouterr().out)
    truth = {"accuracy": 1 / (1 + math.exp(4.0 * (true_loss(5e5, 5e6) - 1.5))), "chrf": 40.0 * true_loss(5e5, 5e6) ** -2}
    for metric, value in truth.items():
        assert there[f"made_up_{metric}"] == pytest.approx(value, rel=0.02), metric
        assert there[f"made_up_{metric}_ci_low"] < there[f"made_up_{metric}"] < there[f"made_up_{metric}_ci_high"]
    assert main(["predict", "hoffmann2022", "--params", "1B", "--tokens", "20B", "--tasks"]) == 2
    assert "--tasks needs a results folder" in capsys.readouterr().err


def test_exercise_defaults_are_a_continuation():
    one = Exercise(prompt="a", references=["b"])
    assert (one.task, one.tokens, one.stop) == ("continuation", 64, [])
