"""The work of ``streamchar eval short``."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from ...data.speech import Speaker
from ...engine import StreamCharEngine
from ..metrics.align import ForcedAligner
from ..metrics.wer import Recogniser, Sphinx, Whisper
from ..options import ShortOptions
from ..sheet import save_sheet, spoken_frames
from ..sources import Generated, GroundTruth, Item, RoundTrip, Source, choose_items
from ..tables import markdown, print_targets, rich_table
from .evaluate import evaluate_short
from .report import as_dict, table_rows
from .targets import targets, targets_beside_teacher

# Sentences with frames in the contact sheet.
_SHEET_ROWS = 4


def score_short(options: ShortOptions, console: Console) -> None:
    """Score the sources that the options name; write a JSON file, a table and a contact sheet.

    Args:
        options: which engines, and how many sentences.
        console: shows progress, the table and the targets.

    Raises:
        FileNotFoundError: the Whisper weights are missing.
        CheckpointError: a checkpoint cannot be loaded.
    """
    recognisers: list[Recogniser] = [Sphinx()]
    if options.whisper is not None:
        recognisers.append(Whisper(options.whisper))
    student = StreamCharEngine.from_pretrained(options.checkpoint) if options.checkpoint else None
    size = (options.side, options.side)
    if student is not None:
        size = (student.preset.picture.height, student.preset.picture.width)
    speaker = Speaker()
    truth = GroundTruth(*size, speaker)
    sources: list[Source] = [truth]
    if student is not None:
        sources.append(RoundTrip(truth, student.vae, student.vocoder))
    if options.teacher is not None:
        teacher = StreamCharEngine.from_pretrained(options.teacher)
        sources.append(Generated(engine_label(options.teacher, teacher, "teacher"), teacher))
    if options.checkpoint is not None and student is not None:
        role = "student" if options.teacher else ""
        sources.append(Generated(engine_label(options.checkpoint, student, role), student))

    def progress(items: Iterable[Item], name: str) -> Iterable[Item]:
        return track(items, description=name, total=options.sentences, console=console, transient=True)

    aligner = ForcedAligner(speaker.tokenizer.g2p)
    items = choose_items(options.sentences, options.identities, options.seed)
    scores = evaluate_short(sources, items, recognisers, aligner, size, options.identities, progress)
    result: dict[str, Any] = {
        "sentences": options.sentences,
        "identities": options.identities,
        "seed": options.seed,
        "size": list(size),
        "scores": as_dict(scores),
        "targets": {score.source: targets(score, scores[0]) for score in scores[2:]},
    }
    if student is not None and options.teacher is not None:
        result["targets"][scores[-1].source] |= targets_beside_teacher(scores[-1], scores[-2])
    out = options.out
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(markdown(table_rows(scores)), encoding="utf-8")
    save_sheet(spoken_frames(sources[-1], items[:_SHEET_ROWS]), out.with_suffix(".png"))
    console.print(rich_table(table_rows(scores), "streamchar eval short"))
    for source, met in result["targets"].items():
        print_targets(met, source, console)


def engine_label(directory: Path, engine: StreamCharEngine, role: str) -> str:
    """Return the name of an engine for tables: its role, or its directory if it has none, and its steps."""
    return f"{role or directory.resolve().name}, {engine.preset.sampler.steps} steps"
