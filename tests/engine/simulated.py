"""Queues of a GPU on a CPU: work waits until something needs it, and runs in any order that is allowed."""

import random
import threading
from collections import deque

import torch

from streamchar.runtime.queues import QUEUE_NAMES


class _Task:
    def __init__(self, streams, queue, work, after):
        self.streams, self.queue, self.work, self.after = streams, queue, work, after
        self.ran, self.seconds = False, 0.0

    def wait(self):
        self.streams.finish(self)


class Simulated:
    """Stands in for CUDA streams.

    Args:
        seed: of the order in which queues get their turn; None puts everything off until it is waited for,
            and then does no more than that.
        heedless: whether queues forget what they were told to come after.
    """

    overlaps = True

    def __init__(self, seed=None, heedless=False):
        self.heedless = heedless
        self._random = None if seed is None else random.Random(seed)
        self._queues = {queue: deque() for queue in QUEUE_NAMES}
        self._lock = threading.RLock()

    def run(self, queue, work, *after):
        with self._lock:
            after = [] if self.heedless else [task for task in after if isinstance(task, _Task)]
            task = _Task(self, queue, work, after)
            self._queues[queue].append(task)
            while self._random is not None and self._random.random() < 0.5 and self._any():
                pass
            return task

    def hand_over(self, *tensors):
        pass

    def finish(self, task):
        """Run what has to have run when the host has waited for ``task``."""
        with self._lock:
            while not task.ran and self._random is not None:
                self._any()
            if not task.ran:
                for each in task.after:
                    self.finish(each)
                while not task.ran:
                    head = self._queues[task.queue][0]
                    for each in head.after:
                        self.finish(each)
                    self._head(task.queue)

    def drain(self):
        """Run everything."""
        with self._lock:
            for queue in QUEUE_NAMES:
                while self._queues[queue]:
                    self.finish(self._queues[queue][-1])

    def _any(self):
        ready = [q for q, tasks in self._queues.items() if tasks and all(each.ran for each in tasks[0].after)]
        if ready:
            self._head(self._random.choice(ready))
        return bool(ready)

    def _head(self, queue):
        task = self._queues[queue].popleft()
        with torch.inference_mode():
            task.work()
        task.ran = True
