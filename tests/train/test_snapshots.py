"""A task whose state is handed out on the way."""

from sae_kit.train.loop import Loop, LoopPlan
from sae_kit.train.snapshots import WithSnapshots

PLAN = LoopPlan(n_steps=6, log_every=4, checkpoint_every=3, n_checkpoints=2)


class Counting:
    """A task that counts its steps."""

    n_tokens_per_step = 5

    def __init__(self):
        self.n = 0

    def step(self, step, *, measure):
        self.n += 1
        return {"loss": 1.0 / self.n}

    def state_dict(self):
        return {"n": self.n}

    def load_parts(self, parts):
        self.n = parts[0]["n"]


def watched(steps, seen):
    task = Counting()
    return WithSnapshots(task, steps, lambda step: seen.append((step, task.n)))


def test_the_state_is_that_after_so_many_steps(tmp_path):
    seen = []
    Loop(watched((0, 1, 4, 6), seen), PLAN, folder=tmp_path, loggers=[]).run()
    assert seen == [(0, 0), (1, 1), (4, 4), (6, 6)]


def test_a_run_goes_on_as_the_task_alone_would(tmp_path):
    Loop(watched((), []), PLAN, folder=tmp_path, loggers=[]).run()
    seen = []
    loop = Loop(
        watched((0, 7), seen),
        LoopPlan(n_steps=8, log_every=4, checkpoint_every=3, n_checkpoints=2),
        folder=tmp_path,
        loggers=[],
    )
    assert loop.resume()
    loop.run()
    assert seen == [(7, 7)]
    assert loop.task.state_dict() == {"n": 8}
