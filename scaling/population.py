"""Many runs of one shape as one program: each lane of a population trains a trunk or a branch, with steps, rates and text of its own.

A trunk that reaches a branch step goes on in its lane; its copy waits for a free lane, in which it cools down. A lane that has nothing to
do stands still. No lane's numbers are part of another's, so that one that diverges harms none; losses are those of training one by one
up to rounding (tests/test_population.py). What a run is, and how it is evaluated, saved and published, is `scaling.train.Trainer`'s.
"""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from scaling.batches import text_of_lanes
from scaling.claim import ClaimLost
from scaling.config import RunConfig
from scaling.program import NEVER, State, compile_training, program_of, rates_of, repeated, schedule_of
from scaling.stopping import Stopped
from scaling.train import TRUNK, Diverged, Point, Progress, Trainer


@dataclass
class Job:
    """What a lane trains: the trunk of a trainer up to the last branch that is left, or one branch to its end."""

    trainer: Trainer
    start: Progress
    stop: int
    runs: list[RunConfig]
    cooldown: tuple[float, float] = NEVER
    phase: str = TRUNK
    branched: Progress | None = None

    def __post_init__(self) -> None:
        """Begin where the start is."""
        self.step, self.points = self.start.step, list(self.start.points)

    @property
    def end(self) -> int:
        """Where the next segment ends."""
        return self.trainer.segment_end(self.step, self.stop)

    @property
    def schedule(self) -> dict[str, np.float32]:
        """Arguments of the rate multiplier."""
        return schedule_of(self.trainer.config, self.cooldown)


def _branch(trainer: Trainer, run: RunConfig, start: Progress) -> Job:
    return Job(trainer, start, run.steps, [run], (run.branch_step, run.steps), run.run_id)


@dataclass
class Population:
    """Trainers whose trunks share a program (`scaling.devices.lane_key`)."""

    trainers: list[Trainer]
    waiting: deque[Job] = field(default_factory=deque)
    lanes: list[Job | None] = field(default_factory=list)
    states: State = field(default_factory=dict)

    def train(self) -> None:
        """Train every branch of all trunks that has no result yet; a trunk that another worker has taken over is left to it."""
        config, stopwatch = self.trainers[0].config, self.trainers[0].stopwatch
        self.lanes = [None] * config.lanes
        for trainer in self.trainers:
            self._owned(trainer, lambda trainer=trainer: self._enqueue(trainer))
        if self.waiting:
            with stopwatch.during("compilation"):
                self.states = compile_training(config, self._text())
        saved_at = time.monotonic()
        while self._fill_lanes():
            self._advance()
            stopping = self.trainers[0].stop.requested
            if stopping or time.monotonic() - saved_at > self.trainers[0].checkpoint_seconds:
                for lane, job in self._busy():
                    self._owned(job.trainer, lambda job=job, lane=lane: job.trainer.save(job.phase, self._progress(lane, job)))
                saved_at = time.monotonic()
                if stopping:
                    raise Stopped("stopped; saved at steps " + ", ".join(str(job.step) for _, job in self._busy()))
        for trainer in self.trainers:
            trainer.prune(last=True)
            trainer.notify(f"{trainer.trunk.trunk_id}: complete after step {trainer.trunk.runs[-1].steps}")

    def _enqueue(self, trainer: Trainer) -> None:
        """The jobs of what a trainer has left, from the latest saved states."""
        left = []
        for run in trainer.pending:
            saved = trainer.load(run.run_id, run.steps)
            if saved is None:
                left.append(run)
            else:
                self.waiting.append(_branch(trainer, run, saved))
        if left:
            start = trainer.load(TRUNK, left[0].branch_step) or trainer.fresh()
            trunk = Job(trainer, start, left[-1].branch_step, left)
            self._branch_off(trunk, start)
            if trunk.runs:
                self.waiting.append(trunk)

    def _branch_off(self, trunk: Job, progress: Progress) -> None:
        """Let the branches that leave here wait for a lane; first, since what they wait with is memory."""
        for run in [run for run in trunk.runs if run.branch_step == progress.step]:
            trunk.runs.remove(run)
            self.waiting.appendleft(_branch(trunk.trainer, run, progress))
            trunk.branched = progress

    # ------------------------------------------------------------ lanes

    def _busy(self) -> list[tuple[int, Job]]:
        return [(lane, job) for lane, job in enumerate(self.lanes) if job is not None]

    def _fill_lanes(self) -> bool:
        """Put waiting jobs into free lanes; whether any lane has work."""
        for lane, job in enumerate(self.lanes):
            if job is None and self.waiting:
                self.lanes[lane] = job = self.waiting.popleft()
                self.states = program_of(job.trainer.config).put(self.states, lane, job.start.state)
        return any(job is not None for job in self.lanes)

    def _text(self) -> Any:
        idle = (self.trainers[0].config, 0, 0)
        lanes = [idle if job is None else (job.trainer.config, job.step, job.end) for job in self.lanes]
        return text_of_lanes(self.trainers[0].corpus, lanes)

    def _advance(self) -> None:
        """One segment of every lane, and what follows from where each then is."""
        stopwatch, idle = self.trainers[0].stopwatch, self.trainers[0].config
        first = np.array([job.step if job else 0 for job in self.lanes], np.int32)
        count = np.array([job.end - job.step if job else 0 for job in self.lanes], np.int32)
        rates = repeated([rates_of(job.trainer.config if job else idle) for job in self.lanes])
        schedules = [job.schedule if job else schedule_of(idle) for job in self.lanes]
        with stopwatch.during("training"):
            advance = program_of(idle).advance_population
            self.states, losses, norms = advance(self.states, first, count, self._text(), rates, repeated(schedules))
            losses, norms = np.asarray(losses).astype(np.float64), np.asarray(norms)
        stopwatch.steps += int(count.sum())
        for lane, job in self._busy():
            self._owned(job.trainer, lambda lane=lane, job=job: self._after(lane, job, losses[lane, : count[lane]], float(norms[lane])))

    def _after(self, lane: int, job: Job, losses: np.ndarray, gradient_norm: float) -> None:
        try:
            point: Point = job.trainer.log(job.phase, job.step, losses, gradient_norm=gradient_norm, schedule=job.schedule)
        except Diverged as divergence:
            self.lanes[lane] = None
            for run in job.runs:  # of a trunk: all branches that are left
                job.trainer.publish_diverged(run, divergence, job.branched if job.phase == TRUNK else job.start)
            return
        job.points.append(point)
        job.step += len(losses)
        if job.phase == TRUNK and any(run.branch_step == job.step for run in job.runs):
            progress = self._progress(lane, job)
            job.trainer.save(TRUNK, progress)
            self._branch_off(job, progress)
        if job.step == job.stop:
            self.lanes[lane] = None
            if job.phase != TRUNK:
                job.trainer.publish(job.runs[0], self._progress(lane, job))

    def _progress(self, lane: int, job: Job) -> Progress:
        state = jax.device_get(program_of(job.trainer.config).take(self.states, lane))
        return Progress(state=state, step=job.step, points=list(job.points))

    def _owned(self, trainer: Trainer, work) -> None:
        """Do something for a trainer; if its trunk has been taken over, drop all its jobs."""
        try:
            work()
        except ClaimLost:
            trainer.notify(f"{trainer.trunk.trunk_id}: taken over by another worker")
            self.waiting = deque(job for job in self.waiting if job.trainer is not trainer)
            self.lanes = [None if job is not None and job.trainer is trainer else job for job in self.lanes]
