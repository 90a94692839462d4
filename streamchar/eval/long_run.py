"""A long evaluation in a directory: one file a finished stream, so that it can be broken off."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from .judge import Judge
from .long import StreamScores
from .long_course import SourceCourse, merge
from .long_report import as_dict, comparison_lines, draw, table_lines
from .sheet import save_sheet
from .streams import LongSource, Script, TrueStream, write_script
from .tables import markdown
from .transcript import EdgeCount


@dataclass(frozen=True)
class Protocol:
    """What streams have to share to stand in one table.

    Attributes:
        minutes: of a stream.
        identities: characters of the gallery.
        seed: of texts, motion and noise.
        size: height and width of the pictures.
        chunk: seconds of a chunk.
    """

    minutes: int
    identities: int
    seed: int
    size: tuple[int, int]
    chunk: float


class LongRun:
    """The streams in a directory.

    Args:
        directory: made where it is not there.
        protocol: of all of them.

    Raises:
        ValueError: the directory holds streams of another protocol, or a file that is no stream.
    """

    def __init__(self, directory: Path, protocol: Protocol) -> None:
        self.directory, self.protocol = directory, protocol
        directory.mkdir(parents=True, exist_ok=True)
        for file, found, _ in _files(self.directory):
            if found["protocol"] != self._spelled():
                other = f"got {found['protocol']} in {file.name}; name another directory"
                raise ValueError(f"directory must hold streams of {self._spelled()}, {other}")

    def run(
        self,
        source: LongSource,
        streams: int,
        judge: Judge,
        weights: str = "",
        progress: Callable[[Iterable[int], str], Iterable[int]] = lambda numbers, _: numbers,
    ) -> None:
        """Let a source speak the streams that it has not spoken yet.

        Args:
            source: who speaks.
            streams: that are wanted.
            judge: scores them.
            weights: digest of the source's weights, from :func:`digest`.
            progress: wraps the numbers of the streams to come, told the source's name.

        Raises:
            ValueError: streams of that name were spoken with other weights, or another text by another
                version.
        """
        protocol, due = self.protocol, []
        scripts = [
            write_script(protocol.minutes, number, protocol.identities, protocol.seed)
            for number in range(streams)
        ]
        for number, script in enumerate(scripts):
            file = self._file(source.name, number)
            if not file.is_file():
                due.append(number)
                continue
            found = _read(file)[0]
            if found["weights"] != weights:
                raise ValueError(
                    f"{source.name!r} must be one set of weights in {self.directory}, got two; "
                    "give the new ones a name of their own"
                )
            if found["text"] != _text(script):
                raise ValueError(
                    f"stream {number} must be of this version's text, got another in {file}; "
                    "name another directory"
                )
        for number in progress(due, source.name):
            script = scripts[number]
            scores, shown = judge.score(source, script, protocol.chunk)
            file = self._file(source.name, number)
            save_sheet(shown, file.with_suffix(".png"))
            entry = {"protocol": self._spelled(), "source": source.name, "weights": weights, "stream": number}
            entry["text"] = _text(script)
            # A file is there whole or not at all.
            part = file.with_suffix(".part")
            part.write_text(json.dumps(entry | {"scores": asdict(scores)}, indent=1) + "\n", encoding="utf-8")
            os.replace(part, file)

    def report(self) -> list[SourceCourse]:
        """Write long.json, long.md and long.png of all streams there are, and return what they say."""
        courses = read_courses(self.directory)
        result = {"protocol": self._spelled(), "sources": as_dict(courses)}
        target = self.directory / "long.json"
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        target.with_suffix(".md").write_text(markdown(table_lines(courses)), encoding="utf-8")
        draw(courses, target.with_suffix(".png"))
        return courses

    def _spelled(self) -> dict[str, Any]:
        return asdict(self.protocol) | {"size": list(self.protocol.size)}

    def _file(self, source: str, number: int) -> Path:
        return self.directory / f"{re.sub('[^a-z0-9]+', '-', source.lower())}.{number:03d}.json"


def read_courses(directory: Path) -> list[SourceCourse]:
    """Return every source of a directory, ground truth first, the others by name.

    Raises:
        ValueError: a file there holds no stream.
    """
    streams: dict[str, list[StreamScores]] = {}
    for _, found, scores in _files(directory):
        streams.setdefault(found["source"], []).append(scores)
    names = sorted(streams, key=lambda name: (name != TrueStream.name, name))
    return [merge(name, streams[name]) for name in names]


def compare(directory: Path, to: str) -> list[list[str]]:
    """Write compare.md, of all sources of a directory beside one of them, and return its cells.

    Args:
        directory: that streams were spoken into.
        to: the name of the source.

    Raises:
        ValueError: the directory has no such source, or a file there holds no stream.
    """
    sources = read_courses(directory)
    base = next((source for source in sources if source.source == to), None)
    if base is None:
        known = ", ".join(repr(source.source) for source in sources) or "none"
        raise ValueError(f"to must be a source spoken into {directory} ({known}), got {to!r}")
    lines = comparison_lines(sources, base)
    (directory / "compare.md").write_text(markdown(lines), encoding="utf-8")
    return lines


def digest(checkpoint: Path) -> str:
    """Return a digest of the files of a checkpoint, which tells changed weights from the same."""
    found = blake2b(digest_size=8)
    for file in sorted(checkpoint.iterdir()):
        if file.suffix in (".json", ".safetensors"):
            found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()


def _files(directory: Path) -> Iterator[tuple[Path, dict[str, Any], StreamScores]]:
    for file in sorted(directory.glob("*.[0-9][0-9][0-9].json")):
        yield file, *_read(file)


def _text(script: Script) -> str:
    """Return a digest of what is asked for."""
    return blake2b(" ".join(script.words).encode(), digest_size=8).hexdigest()


def _read(file: Path) -> tuple[dict[str, Any], StreamScores]:
    """Return what the file of a stream says, and its scores.

    Raises:
        ValueError: it is no such file.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        scores = found["scores"]
        counts = {name: EdgeCount(**scores[name]) for name in ("unheard", "skipped", "repeated")}
        missing = {"protocol", "source", "weights", "text"} - found.keys()
        if missing:
            raise KeyError(*missing)
        return found, StreamScores(**scores | counts)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file} must hold a stream of streamchar eval long, got {type(error).__name__}: {error}; "
            "move it away, and the stream is spoken anew"
        ) from error
