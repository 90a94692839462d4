"""A character in an asyncio service: text arrives in pieces, a listener may cut it off.

Run it with ``python examples/async_service.py``. A real service would replace :func:`words` by the stream of
its language model and :func:`send` by its transport.
"""

import asyncio
from collections.abc import AsyncIterator

from streamchar import Chunk, StreamCharEngine
from streamchar.checkpoint import shipped_weights
from streamchar.media import load_reference
from streamchar.session import Pacer

#: Any picture of a face will do; this one ships with the weights.
PICTURE = shipped_weights("tiny") / "reference.png"


async def words(text: str) -> AsyncIterator[str]:
    """Yield a text word by word, as a language model does."""
    for word in text.split():
        await asyncio.sleep(0.02)
        yield word + " "


async def send(chunk: Chunk) -> None:
    """Send a chunk to the viewer; here, print what it holds."""
    frames, samples = len(chunk.host.video), len(chunk.host.audio)
    said = " ".join(word.text for word in chunk.words)
    print(f"chunk {chunk.index}: {frames} frames, {samples} samples: {said}")


async def main() -> None:
    """Speak a text that arrives in pieces, cut it off, and speak another."""
    # Loading blocks for a few seconds, so it runs in a thread.
    engine = await asyncio.to_thread(StreamCharEngine.from_preset, "tiny")
    picture = engine.preset.picture
    reference = load_reference(PICTURE, picture.height, picture.width)
    # The pacer keeps generation one chunk ahead of playback, and knows what has been played.
    with engine.open(reference, seed=7, pacer=Pacer(engine.preset.seconds)) as session:
        async for chunk in session.speak(
            words("Good morning. I can speak for as long as you like, and longer.")
        ):
            await send(chunk)
            if chunk.index == 1:
                # interrupt() waits for at most one denoising step: keep the event loop free meanwhile.
                cut = await asyncio.to_thread(session.interrupt)
                print(f"interrupted: {cut.words} words delivered, {cut.played_words} of them played")
        async for chunk in session.speak("All right, I stop."):
            await send(chunk)


if __name__ == "__main__":
    asyncio.run(main())
