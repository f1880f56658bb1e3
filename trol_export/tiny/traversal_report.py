"""What the second pass is worth in TroL-tiny: python -m trol_export.tiny.traversal_report CHECKPOINT CONTROL FOLDER.

Three engines answer the questions of the fixed test set: the released checkpoint; the same with its gate held at 0, so
that the second pass is computed and thrown away; and a network trained for as many steps with one pass over the prompt.
Then the mean gate of each layer is taken: over image tokens, over text tokens, and over the last of each prompt, the
only one whose gate counts in the last layer. Whatever comes out is written down.
"""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trol_benchmarks.report import table
from trol_benchmarks.world.test_set import QuestionSet, read_question_set
from trol_export.export_command_line import NEEDED
from trol_export.needed import require_installed
from trol_export.tiny.plots import as_png
from trol_runtime.atomic_file import write_whole
from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser
from trol_runtime.errors import UsageError

REPORT_JSON, GATES_PNG = "traversal.json", "gates.png"
ENGINES = ("released", "second pass off", "trained without")
EXAMPLES = (
    ("CHECKPOINT CONTROL docs/tiny", f"write {REPORT_JSON} and {GATES_PNG} there; CONTROL was trained --no-traversal"),
)
_GATED_QUESTIONS = 100  # spread over the test set


def main(argv: Sequence[str] | None) -> int:
    """Export, ask, compare; returns the exit code."""
    arguments = _parse(argv)
    if not arguments.folder.is_dir():
        raise UsageError(f"{arguments.folder} is no folder, expected one for the report: create it first")
    require_installed("the report", (*NEEDED, "matplotlib"), "export,cpu,bench")
    _require_trained_differently(arguments.checkpoint, arguments.control)
    question_set = read_question_set()
    with tempfile.TemporaryDirectory() as folder:
        engines = _exported(arguments.checkpoint, arguments.control, Path(folder))
        report = _accuracies(engines, question_set)
        gates = mean_gates(arguments.checkpoint, engines["released"], question_set)
    report["mean_gate"] = {kind: [round(float(gate), 4) for gate in layers] for kind, layers in gates.items()}
    written = {REPORT_JSON: (json.dumps(report, indent=1) + "\n").encode(), GATES_PNG: _drawn(gates)}
    for name, data in written.items():
        write_whole(arguments.folder / name, data, overwrite=True, option="FOLDER")
    print(as_text(report))
    return 0


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = CommandParser("python -m trol_export.tiny.traversal_report", EXAMPLES)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="trained with traversal")
    parser.add_argument("control", type=Path, metavar="CONTROL", help="trained without")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the report goes")
    return parser.parse_args(argv)


def _require_trained_differently(checkpoint: Path, control: Path) -> None:
    """Raise UsageError unless the second of these, and only that, has the closed gate of a training without traversal.

    For how many steps either was trained, no checkpoint tells.
    """
    for directory, expected in ((checkpoint, False), (control, True)):
        if _is_closed(directory) != expected:
            trained = ("without", "with") if _is_closed(directory) else ("with", "without")
            raise UsageError(
                f"{directory} was trained {trained[0]} traversal, expected one trained {trained[1]}: give the released "
                "checkpoint first, then the control"
            )


def _is_closed(directory: Path) -> bool:
    from trol_export.checkpoint import GATE, Checkpoint
    from trol_export.tiny.training import closed_gate

    checkpoint = Checkpoint.open(directory)
    gate = {name: checkpoint.torch(name) for name in GATE}
    return all(tensor.equal(gate[name]) for name, tensor in closed_gate(gate).items())


def _exported(checkpoint: Path, control: Path, folder: Path) -> dict[str, Path]:
    """Three fp16 engines by name."""
    from trol_export.pipeline import ExportRequest, export_engine

    closed = folder / "closed"
    write_closed_gate(checkpoint, closed)
    engines = {}
    for number, (name, source) in enumerate(zip(ENGINES, (checkpoint, closed, control), strict=True)):
        engines[name] = folder / f"{number}.plan"
        print(f"{name}: {source}", file=sys.stderr)
        export_engine(ExportRequest(str(source), engines[name], "fp16"))
    return engines


def write_closed_gate(checkpoint: Path, directory: Path) -> None:
    """A copy of a checkpoint whose gate is 0 at every token: the second pass has no share in the answers."""
    from trol_export.checkpoint import Checkpoint, read_json_object
    from trol_export.tiny.checkpoint_writer import write_checkpoint
    from trol_export.tiny.training import closed_gate

    source = Checkpoint.open(checkpoint)
    weights = {name: source.torch(name) for name in source.tensors}
    tokenizer = read_json_object(checkpoint / "tokenizer.json")
    write_checkpoint(directory, source.config, tokenizer, weights | closed_gate(weights))


def _accuracies(engines: dict[str, Path], question_set: QuestionSet) -> dict[str, Any]:
    """The accuracy report of every engine, those of the others beside the released one's answers."""
    from trol_benchmarks.accuracy import ask_engine, open_engine
    from trol_benchmarks.accuracy_report import accuracy_report

    questions = question_set.questions
    answers = {name: ask_engine(open_engine(str(path)), question_set, questions) for name, path in engines.items()}
    return {
        name: accuracy_report(question_set, questions, own, None if name == "released" else answers["released"])
        for name, own in answers.items()
    }


def mean_gates(checkpoint: Path, engine: Path, question_set: QuestionSet) -> dict[str, NDArray[np.float64]]:
    """The gate's mean in each layer, (layers,), over tokens of some prompts of the set.

    Over the "image" and the "text" tokens, and over the "last" of each prompt, which is of text. Computed by the eager
    model in fp32; of the engine only tokenizer and sizes are used.
    """
    from trol_export.checkpoint import Checkpoint
    from trol_graphs.eager import EagerSession, eager_model
    from trol_graphs.named_values import recorded
    from trol_graphs.ops import gate_value
    from trol_runtime.bundle import Bundle
    from trol_runtime.engine import TOKENIZER_ENTRY
    from trol_runtime.picture import load_picture
    from trol_runtime.preprocess import preprocess
    from trol_runtime.tokenizer import TextTokenizer

    bundle = Bundle.open(engine)
    config, template = bundle.manifest.model, bundle.manifest.prompt
    assert template is not None
    tokenizer = TextTokenizer(bundle.read(TOKENIZER_ENTRY), template)
    session = EagerSession(eager_model(config, Checkpoint.open(checkpoint).torch))
    gate = session.model.trol_gating
    layers = range(config.decoder.layers)
    gates: dict[str, list[NDArray[np.float64]]] = {"image": [], "text": [], "last": []}
    questions = question_set.questions
    for question in questions[:: max(len(questions) // _GATED_QUESTIONS, 1)]:
        picture: Image.Image = load_picture(question_set.pictures[question.picture])
        ids = tokenizer.encode_prompt(question.question.text, [1], config.vision.tokens_per_crop)
        with recorded() as values:
            session.prefill(ids, session.encode(preprocess([picture], config.vision)))
        first = [values[f"layers.{layer}.first_pass"] for layer in layers]
        of_tokens = np.stack([gate_value(x, gate.weight, gate.bias)[:, 0].detach().numpy() for x in first])
        is_image = ids[0] == config.image_token_id
        gates["image"].append(of_tokens[:, is_image])
        gates["text"].append(of_tokens[:, ~is_image])
        gates["last"].append(of_tokens[:, -1:])
    return {kind: np.concatenate(found, axis=1).mean(axis=1, dtype=np.float64) for kind, found in gates.items()}


def as_text(report: dict[str, Any]) -> str:
    """The report for a person."""
    rows = [
        [family, *(_score(report[name]["families"][family]) for name in ENGINES)]
        for family in report["released"]["families"]
    ]
    rows.append(["all", *(_score(report[name]["overall"]) for name in ENGINES)])
    rows.append(["p-value against the released one", "", *(_p_value(report[name]) for name in ENGINES[1:])])
    gates = [
        [f"layer {layer}", *(f"{mean:.3f}" for mean in means)]
        for layer, means in enumerate(zip(*report["mean_gate"].values(), strict=True))
    ]
    return "\n".join([table([["family", *ENGINES], *rows]), "", table([["mean gate", *report["mean_gate"]], *gates])])


def _score(score: dict[str, Any]) -> str:
    low, high = score["ci95"]
    return f"{score['accuracy']:.3f} ({low:.3f} to {high:.3f})"


def _p_value(report: dict[str, Any]) -> str:
    return f"{report['against']['p_value']:.3g}"


def _drawn(gates: dict[str, NDArray[np.float64]]) -> bytes:
    """A PNG of the mean gate by layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for offset, (kind, means) in zip((-0.27, 0, 0.27), gates.items(), strict=True):
        axes.bar(np.arange(len(means)) + offset, means, 0.27, label=f"{kind} tokens")
    axes.set(
        xlabel="layer", ylabel="mean gate: share of the second pass", ylim=(0, 1), xticks=range(len(gates["image"]))
    )
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return as_png(figure)


if __name__ == "__main__":
    run_script("trol_export.tiny.traversal_report", main)
