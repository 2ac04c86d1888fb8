"""One measuring process (`scaling.calibration.measure` starts them): seconds of the real compiled programs, on one pinned thread.

Its argument: the `Job`. Its output: a `Calibration`. Both JSON.
"""

import sys
import time
from collections.abc import Callable

import msgspec
import numpy as np

from scaling.calibration import Calibration, Shape, step_flops
from scaling.config import TrunkConfig
from scaling.launch import be_a_worker
from scaling.timings import Stopwatch
from scaling.tokenizer import token_dtype

TRAINING_SECONDS = 1.0
EVALUATION_SECONDS = 0.3


class Job(msgspec.Struct, frozen=True):
    """What to measure: trunks whose shapes count, the core to use, and when (monotonic clock) this process was started."""

    configs: list[TrunkConfig]
    cpu: int | None
    began: float


def main() -> None:
    """Measure every shape of the job."""
    job = msgspec.json.decode(sys.argv[1], type=Job)
    be_a_worker(cpu=job.cpu, dies_with_stdin=False)
    import jax

    import scaling.program

    jax.devices()
    start_up = time.monotonic() - job.began
    stopwatch = Stopwatch()
    scaling.program.count_compiled(stopwatch)
    shapes = tuple(_measure_shape(config, stopwatch) for config in job.configs)
    sys.stdout.buffer.write(msgspec.json.encode(Calibration(shapes=shapes, start_up=start_up)))


def _measure_shape(config: TrunkConfig, stopwatch: Stopwatch) -> Shape:
    import jax

    from scaling.evaluate import compile_evaluation, evaluation_batch, window_losses
    from scaling.program import LOG_EVERY, compile_training, program_of, rates_of, repeated, schedule_of

    model, batch, lanes = config.model, config.data.batch_tokens // config.model.sequence_length, config.lanes
    compiled, rates, schedule = program_of(config), rates_of(config), schedule_of(config)
    random = np.random.default_rng(0)
    windows = random.integers(0, model.vocab_size, (LOG_EVERY, batch, model.sequence_length + 1), token_dtype(model.vocab_size))
    text = windows if lanes == 1 else np.stack([windows] * lanes)
    stopwatch.lap()
    state = compile_training(config, text)
    compile_evaluation(model, config.precision)
    lap = stopwatch.lap()
    compilation = sum(lap.seconds.values())

    def train(steps: int) -> None:
        nonlocal state
        if lanes == 1:
            state, losses, _ = compiled.advance(state, 0, steps, text, rates, schedule)
        else:
            first, count = np.zeros(lanes, np.int32), np.full(lanes, steps, np.int32)
            arguments = repeated([rates] * lanes), repeated([schedule] * lanes)
            state, losses, _ = compiled.advance_population(state, first, count, text, *arguments)
        jax.block_until_ready(losses)

    def evaluate(batches: int) -> None:
        some = np.resize(windows[0], (batches * evaluation_batch(model), model.sequence_length + 1))
        window_losses(model, parameters, some, precision=config.precision)

    step = _seconds_each(train, most=LOG_EVERY, at_least=TRAINING_SECONDS) / lanes
    parameters = (state if lanes == 1 else compiled.take(state, 0))["parameters"]
    return Shape(
        model=model,
        batch_tokens=config.data.batch_tokens,
        precision=config.precision,
        lanes=lanes,
        flops=step_flops(model, config.data.batch_tokens),
        step=step,
        window=_seconds_each(evaluate, most=16, at_least=EVALUATION_SECONDS) / evaluation_batch(model),
        cold=compilation if lap.compiled else None,
        warm=None if lap.compiled else compilation,
    )


def _seconds_each(work: Callable[[int], object], *, most: int, at_least: float) -> float:
    """Mean seconds of one unit of work, up to `most` at a time, for `at_least` seconds; the first, which finds cold caches, is left out."""
    began = time.monotonic()
    work(1)
    count = max(1, min(most, round(at_least / 3 / max(time.monotonic() - began, 1e-6))))
    began, done = time.monotonic(), 0
    while (passed := time.monotonic() - began) < at_least or not done:
        work(count)
        done += count
    return passed / done


if __name__ == "__main__":
    main()
