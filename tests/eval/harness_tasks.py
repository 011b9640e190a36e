"""Tiny tasks of lmms-eval and VLMEvalKit, made of held-out forms, in each harness's own format."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from vlkv.eval.tasks import make_samples

YAML = """task: forms_{name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_visual: !function forms.visual
doc_to_text: !function forms.text
doc_to_target: "answer"
generation_kwargs:
  max_new_tokens: 8
  temperature: 0
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
FUNCTIONS = """from PIL import Image


def visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""


def _forms(folder: Path, count: int) -> list[dict[str, str]]:
    """Writes the forms' pictures into a new folder; returns path, question and answer of each."""
    folder.mkdir()
    lines = []
    for sample in make_samples("form-qa", count, seed=1):
        path = folder / f"{sample.number}.png"
        sample.pictures()[0].save(path)
        (turn,) = sample.turns
        lines.append({"image": str(path), "question": turn.question, "answer": turn.answer})
    return lines


def vlmevalkit_tasks(folder: Path, count: int) -> list[str]:
    """Writes the data sets `forms_GQA`, which VLMEvalKit scores as GQA, and `forms_options`, of multiple choice.

    Returns the expected answers of the former; the latter's answer is always A.
    """
    lines = _forms(folder, count)
    for name, answer, options in (("forms_GQA", "{}", {}), ("forms_options", "A", {"A": "yes", "B": "no"})):
        with (folder / f"{name}.tsv").open("w") as file:
            rows = csv.writer(file, delimiter="\t")
            rows.writerow(["index", "image_path", "question", "answer", *options])
            for number, line in enumerate(lines):
                shown = answer.format(line["answer"])
                rows.writerow([number, line["image"], line["question"], shown, *options.values()])
    return [line["answer"] for line in lines]


def lmms_tasks(folder: Path, count: int) -> list[str]:
    """Writes the tasks `forms_tiny` and `forms_rounds`; returns the expected answers of the former."""
    lines = _forms(folder, count)
    (folder / "forms.json").write_text(json.dumps(lines))
    (folder / "forms.py").write_text(FUNCTIONS)
    for name, kind in (("tiny", "generate_until"), ("rounds", "generate_until_multi_round")):
        text = YAML.format(name=name, kind=kind, data=folder / "forms.json")
        (folder / f"{name}.yaml").write_text(text)
    return [line["answer"] for line in lines]
