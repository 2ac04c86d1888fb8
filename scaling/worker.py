"""The worker: claims what is free in a results folder and trains it, until nothing is left.

A worker is one process, or several that train each trunk together on devices of their own (`join`): then the first one claims, decides and
writes, and the others compute along. Import this only after `scaling.launch.be_a_worker`.
"""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jax
from jax.sharding import Mesh

from scaling import claim as claims
from scaling.batches import compile_ahead
from scaling.budget import Guard
from scaling.config import ModelConfig
from scaling.corpus import Corpus, load
from scaling.devices import lane_key
from scaling.launch import POLL_SECONDS, is_released, pending_trunks
from scaling.mesh import agreed, make_mesh
from scaling.plan import Trunk, by_preference, group_trunks
from scaling.population import Population
from scaling.program import count_compiled
from scaling.record import Folder, Resolved, read_resolved, write_json
from scaling.stopping import Stop, Stopped
from scaling.timings import Stopwatch
from scaling.train import Trainer

WAIT, END = -1, -2
"""What the first process says to the others instead of the number of a trunk."""


def join(coordinator: str, *, processes: int | None, process: int | None) -> None:
    """Become one of several processes that train together (`jax.distributed`); `auto`: as Slurm, Open MPI or Kubernetes say."""
    if coordinator == "auto":
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(coordinator, num_processes=processes, process_id=process)


def work(
    root: Path,
    *,
    follow: bool = False,
    notify: Callable[[str], None] = lambda message: None,
    stopwatch: Stopwatch | None = None,
    stop: Stop | None = None,
) -> int:
    """Train what is free in a results folder until nothing is; returns the number of trunks that this worker trained.

    With `follow`, wait for trunks that are not released yet (until standard input closes) and compile their programs meanwhile.
    `stopwatch` began with the process, if that is known; `stop` is how others ask this worker to end.
    """
    folder, resolved = Folder(root), read_resolved(root)
    mesh, guard = make_mesh(resolved.sweep.devices), Guard.of(folder, resolved)
    worker = Worker(folder, resolved, mesh, notify, stopwatch or Stopwatch(), stop or Stop(), guard)
    count_compiled(worker.stopwatch)
    worker.stopwatch.switch("records")
    return worker.work(follow=follow)


@dataclass
class Worker:
    """One worker and what it has loaded and compiled."""

    folder: Folder
    resolved: Resolved
    mesh: Mesh | None
    notify: Callable[[str], None]
    stopwatch: Stopwatch
    stop: Stop
    guard: Guard
    loaded: dict[str, Corpus] = field(default_factory=dict)
    compiled: set[ModelConfig] = field(default_factory=set)

    def work(self, *, follow: bool) -> int:
        """Train until nothing is free; returns the number of trunks."""
        trained, trunks = 0, group_trunks(self.resolved.runs)
        numbers = {trunk.trunk_id: number for number, trunk in enumerate(trunks)}
        while True:
            pending = pending_trunks(self.folder, self.resolved)
            if agreed(self.stop.requested):
                return trained
            trainers = self._claimed(pending) if jax.process_index() == 0 else []
            number = int(agreed(numbers[trainers[0].trunk.trunk_id] if trainers else WAIT if follow and pending else END))
            if number == END:
                return trained
            if number == WAIT:
                self._compile_unreleased(pending)
                with self.stopwatch.during("waiting"):
                    time.sleep(POLL_SECONDS)
                continue
            self._train(trainers or [self._trainer(trunks[number], None)])
            trained += max(1, len(trainers))

    def _claimed(self, pending: list[Trunk]) -> list[Trainer]:
        """The free trunk that is best taken now, with others for the lanes of its program."""
        released = [trunk for trunk in pending if is_released(self.folder, trunk)]
        busy = {trunk.config.model for trunk in released if claims.is_live(self.folder, trunk.trunk_id)}
        for trunk in by_preference(released, compiled=self.compiled, busy=busy):
            self._corpus(trunk)  # before the claim: text that cannot be had is nobody's failure but this machine's
            claim = self._claim(trunk)
            if claim is None:
                continue
            trainers = [self._trainer(trunk, claim)]
            for other in _lane_mates(trunk, released):
                if len(trainers) < trunk.config.lanes and (claim := self._claim(other)):
                    trainers.append(self._trainer(other, claim))
            return trainers
        return []

    def _claim(self, trunk: Trunk) -> claims.Claim | None:
        return claims.take(self.folder, trunk.trunk_id, allowed=lambda: trunk.trunk_id not in self.guard.left_out())

    def _trainer(self, trunk: Trunk, claim: claims.Claim | None) -> Trainer:
        records, corpus = self.resolved.sweep.records, self._corpus(trunk)
        shared = (records.keep, records.checkpoint_seconds, self.notify, self.stopwatch, self.mesh, self.stop)
        return Trainer(self.folder, trunk, claim, corpus, *shared)

    def _corpus(self, trunk: Trunk) -> Corpus:
        data = trunk.config.data
        if data.corpus_hash not in self.loaded:  # memory-mapped, so many cost nothing
            options = self.resolved.sweep.text
            self.loaded[data.corpus_hash] = load(data.corpus, content_hash=data.corpus_hash, tokenizer=data.tokenizer, options=options)
        return self.loaded[data.corpus_hash]

    def _compile_unreleased(self, pending: list[Trunk]) -> None:
        for trunk in pending:
            config = trunk.config
            if jax.process_count() == 1 and not is_released(self.folder, trunk) and config.model not in self.compiled:
                with self.stopwatch.during("compilation"):
                    compile_ahead(self._corpus(trunk), config, self.mesh)
                self.compiled.add(config.model)

    def _train(self, trainers: list[Trainer]) -> None:
        """Train claimed trunks. A failure is recorded and must not stop the others; but of several processes one cannot go on alone."""
        config = trainers[0].config
        self.compiled.add(config.model)
        claimed = {trainer.trunk.trunk_id: trainer.claim for trainer in trainers if trainer.claim is not None}
        try:
            metered = self.guard.metered(trainers[0].trunk.trunk_id, self.stop.soon)
            with claims.heartbeat(self.folder, *claimed), metered, self.stop.during_training():
                trainers[0].train() if config.lanes == 1 else Population(trainers).train()
        except Stopped as stopped:
            self.notify(str(stopped))
        except OSError:  # a full disk, a folder that is gone: the machine's fault and not the trunk's, so this worker ends
            raise
        except Exception as error:
            if jax.process_count() > 1:
                raise
            if isinstance(error, claims.ClaimLost):
                self.notify(f"{trainers[0].trunk.trunk_id}: taken over by another worker")
                return
            reason, detail = f"{type(error).__name__}: {error}".splitlines()[0][:300], traceback.format_exc()
            for trainer in trainers:
                if trainer.pending:
                    trunk_id, claim = trainer.trunk.trunk_id, claimed[trainer.trunk.trunk_id]
                    self.notify(f"{trunk_id}: failed: {reason}")
                    failure = {"reason": reason, "attempt": claim.attempt, "traceback": detail}
                    write_json(self.folder.failure(trunk_id), failure)
        finally:
            for trunk_id, claim in claimed.items():
                claims.release(self.folder, trunk_id, claim)


def _lane_mates(trunk: Trunk, released: list[Trunk]) -> list[Trunk]:
    """Other trunks that can be trained in lanes of the same program."""
    key = lane_key(trunk.config)
    return [other for other in released if other is not trunk and lane_key(other.config) == key] if trunk.config.lanes > 1 else []
