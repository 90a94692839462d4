"""A long evaluation in a directory, with one file per finished stream so that a stopped run can continue."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..metrics.word_counts import EdgeCount
from ..sheet import save_sheet
from ..tables import markdown
from .report import as_dict, comparison_rows, draw, table_rows
from .scoring_process import ScoringProcess
from .script import Script, write_script
from .stream_scores import StreamScores
from .streams import LongSource, TrueStream
from .trend import SourceTrends, merge_streams


@dataclass(frozen=True)
class EvaluationProtocol:
    """What the streams of one table have in common.

    Attributes:
        minutes: length of a stream.
        identities: number of characters in the gallery.
        seed: seed of texts, motion and noise.
        size: height and width of the pictures.
        chunk: length of a chunk in seconds.
    """

    minutes: int
    identities: int
    seed: int
    size: tuple[int, int]
    chunk: float

    def as_dict(self) -> dict[str, Any]:
        """Return the protocol as JSON values."""
        return asdict(self) | {"size": list(self.size)}

    def script(self, stream: int) -> Script:
        """Return the script of a stream, by its index from 0."""
        return write_script(self.minutes, stream, self.identities, self.seed)


class LongRun:
    """The streams in a directory.

    Args:
        directory: created if it does not exist.
        protocol: common to all streams.

    Raises:
        ValueError: the directory contains streams of another protocol, or an invalid file.
    """

    def __init__(self, directory: Path, protocol: EvaluationProtocol) -> None:
        self.directory, self.protocol = directory, protocol
        directory.mkdir(parents=True, exist_ok=True)
        for file, entry, _ in _stream_files(directory):
            if entry["protocol"] != protocol.as_dict():
                raise ValueError(
                    f"directory must contain streams of the protocol {protocol.as_dict()}, "
                    f"got {entry['protocol']} in {file.name}; choose another directory"
                )

    def run(
        self,
        source: LongSource,
        streams: int,
        scoring_process: ScoringProcess,
        weights: str = "",
        progress: Callable[[Iterable[int], str], Iterable[int]] = lambda indices, _: indices,
    ) -> None:
        """Let a source speak the streams that are missing.

        Args:
            source: what speaks.
            streams: number of streams in total.
            scoring_process: scores the streams.
            weights: digest of the source's weights from :func:`checkpoint_digest`.
            progress: called with the indices of the missing streams and the name of the source; returns the
                indices to iterate over.

        Raises:
            ValueError: the directory has streams of this source with other weights, or with the texts of
                another version of this package.
        """
        scripts = [self.protocol.script(index) for index in range(streams)]
        missing = [
            index
            for index, script in enumerate(scripts)
            if not self._is_finished(source.name, index, script, weights)
        ]
        for index in progress(missing, source.name):
            script = scripts[index]
            scores, frames = scoring_process.score(source, script, self.protocol.chunk)
            file = self._file(source.name, index)
            save_sheet(frames, file.with_suffix(".png"))
            entry = {
                "protocol": self.protocol.as_dict(),
                "source": source.name,
                "weights": weights,
                "stream": index,
                "text": _text_digest(script),
                "scores": asdict(scores),
            }
            # Written under another name first, so that a file that exists is complete.
            part = file.with_suffix(".part")
            part.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
            os.replace(part, file)

    def report(self) -> list[SourceTrends]:
        """Write long.json, long.md and long.png from all finished streams, and return their trends."""
        sources = read_sources(self.directory)
        result = {"protocol": self.protocol.as_dict(), "sources": as_dict(sources)}
        target = self.directory / "long.json"
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        target.with_suffix(".md").write_text(markdown(table_rows(sources)), encoding="utf-8")
        draw(sources, target.with_suffix(".png"))
        return sources

    def _is_finished(self, source: str, index: int, script: Script, weights: str) -> bool:
        file = self._file(source, index)
        if not file.is_file():
            return False
        entry, _ = _read_stream(file)
        if entry["weights"] != weights:
            raise ValueError(
                f"{self.directory} already has streams of {source!r} with other weights; "
                "give the new weights a name of their own"
            )
        if entry["text"] != _text_digest(script):
            raise ValueError(
                f"{file} contains stream {index} with the text of another version of streamchar; "
                "choose another directory"
            )
        return True

    def _file(self, source: str, index: int) -> Path:
        return self.directory / f"{re.sub('[^a-z0-9]+', '-', source.lower())}.{index:03d}.json"


def read_sources(directory: Path) -> list[SourceTrends]:
    """Return the trends of every source in a directory, ground truth first and the others by name.

    Raises:
        ValueError: the directory contains an invalid file.
    """
    streams: dict[str, list[StreamScores]] = {}
    for _, entry, scores in _stream_files(directory):
        streams.setdefault(entry["source"], []).append(scores)
    names = sorted(streams, key=lambda name: (name != TrueStream.name, name))
    return [merge_streams(name, streams[name]) for name in names]


def compare(directory: Path, to: str) -> list[list[str]]:
    """Compare all sources of a directory with one of them, write compare.md, and return its cells.

    Args:
        directory: directory of a long run.
        to: name of the source to compare with.

    Raises:
        ValueError: the directory has no such source, or contains an invalid file.
    """
    sources = read_sources(directory)
    base = next((source for source in sources if source.source == to), None)
    if base is None:
        known = ", ".join(repr(source.source) for source in sources) or "none"
        raise ValueError(f"to must be a source in {directory} ({known}), got {to!r}")
    rows = comparison_rows(sources, base)
    (directory / "compare.md").write_text(markdown(rows), encoding="utf-8")
    return rows


def checkpoint_digest(checkpoint: Path) -> str:
    """Return a digest of the JSON and weight files of a checkpoint, which changes with the weights."""
    digest = blake2b(digest_size=8)
    for file in sorted(checkpoint.iterdir()):
        if file.suffix in (".json", ".safetensors"):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _text_digest(script: Script) -> str:
    return blake2b(" ".join(script.words).encode(), digest_size=8).hexdigest()


def _stream_files(directory: Path) -> Iterator[tuple[Path, dict[str, Any], StreamScores]]:
    for file in sorted(directory.glob("*.[0-9][0-9][0-9].json")):
        yield file, *_read_stream(file)


def _read_stream(file: Path) -> tuple[dict[str, Any], StreamScores]:
    """Return the content of a stream's file, and its scores.

    Raises:
        ValueError: the file is invalid.
    """
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))
        scores = entry["scores"]
        counts = {name: EdgeCount(**scores[name]) for name in ("unheard", "skipped", "repeated")}
        missing = {"protocol", "source", "weights", "text"} - entry.keys()
        if missing:
            raise KeyError(*missing)
        return entry, StreamScores(**scores | counts)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file} must be a stream of streamchar eval long, got {type(error).__name__}: {error}; "
            "move the file away to have the stream spoken again"
        ) from error
