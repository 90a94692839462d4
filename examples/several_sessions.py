"""Several characters on one engine: sessions that are due together share one batched pass.

Run it with ``python examples/several_sessions.py``. Each session is driven by a thread of its own; no session
sees anything of the others.
"""

from concurrent.futures import ThreadPoolExecutor

import torch

from streamchar import StreamCharEngine
from streamchar.checkpoint import shipped_weights
from streamchar.media import load_reference

#: Any picture of a face will do; this one ships with the weights.
PICTURE = shipped_weights("tiny") / "reference.png"

TEXTS = {
    "Ada": "Good morning, I am the first.",
    "Ben": "And I am the second of us.",
    "Cleo": "There are three of us on one engine.",
}


def speak(engine: StreamCharEngine, reference: torch.Tensor, seed: int, name: str) -> str:
    """Let one character say its text and return a line about it."""
    with engine.open(reference, seed=seed) as session:
        chunks = list(session.speak(TEXTS[name]))
    seconds = len(chunks) * engine.preset.seconds
    slowest = max(chunk.latency["total"] for chunk in chunks)
    said = " ".join(word.text for chunk in chunks for word in chunk.words)
    return f"{name}: {seconds:.1f} s of media, slowest chunk {slowest:.2f} s: {said}"


def main() -> None:
    """Open three sessions and let all of them speak at once."""
    engine = StreamCharEngine.from_preset("tiny", max_sessions=len(TEXTS))
    picture = engine.preset.picture
    reference = load_reference(PICTURE, picture.height, picture.width)
    with ThreadPoolExecutor(len(TEXTS)) as threads:
        lines = [threads.submit(speak, engine, reference, seed, name) for seed, name in enumerate(TEXTS)]
        for line in lines:
            print(line.result())
    stats = engine.stats()
    print(f"{stats.batched} of {stats.chunks} chunks shared a pass")


if __name__ == "__main__":
    main()
