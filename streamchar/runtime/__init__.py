"""Make chunks: who makes the next one, on which buffers, in which order on the device.

The runtime knows rows and timelines, never a session. A session submits a :class:`.request.ChunkRequest` to
the :class:`.scheduler.Scheduler`; the :class:`.executor.Executor` makes the chunks of all waiting requests in
one pass.
"""
