"""Training of one network (Sec. 2.5 and 4.2): SGD steps, validation, early stopping, checkpoints."""

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice

import numpy as np

from icnn.cli import NotFiniteError, Signals, StopError, compilation_announced
from icnn.config import Config, Train
from icnn.data.folder import Face
from icnn.data.geometry import Letterbox
from icnn.evaluate.metrics import confusion, mean_f
from icnn.model.centres import mean_layout, part_centres
from icnn.model.network import icnn_graph
from icnn.stages import NETWORKS
from icnn.train.batches import WEIGHTS, Batch, Batches, own_shards, samples_of, shard_count, spawned, validation_batch
from icnn.train.events import CropsLabelled, Event, StepDone, Validated, listening
from icnn.train.live import CROPS, shown_crops
from icnn.train.run_folder import Progress, Run
from minicnn import SGD, Plan
from minicnn.distributed import SINGLE, Communicator, sharded_step, shards_of
from minicnn.sgd import Constant, Cosine, Schedule


def train_network(
    name: str,
    faces: Sequence[Face],
    validation_faces: Sequence[Face],
    config: Config,
    run: Run,
    backend: str,
    signals: Signals,
    comm: Communicator = SINGLE,
) -> Progress:
    """Train one network and write its weights, resuming from the run's checkpoint if there is one.

    In distributed training every process calls this with the same arguments, but for `run`: only one process's writes.

    Parameters
    ----------
    name : str
        Name of the network, a key of `NETWORKS`.
    faces, validation_faces : sequence of Face
    config : Config
    run : Run
    backend : str
    signals : Signals
    comm : Communicator

    Returns
    -------
    Progress

    Raises
    ------
    InputError
        If no face has any of the network's parts.
    NotFiniteError
        If the loss becomes NaN or infinite; the run keeps the last good checkpoint.
    StopError
        After a signal; the checkpoint is of the step at which it stopped.
    """
    comm.barrier()  # wait until the process that writes has written the previous network
    if (state := run.load_state(name)) is not None and state[1].finished:
        return state[1]
    comm.barrier()  # wait until all have read the state, which will be overwritten
    train, augment = config.for_network(name)
    samples = samples_of(name, faces, train.centre)
    validation = validation_batch(samples_of(name, validation_faces, train.centre), train)
    trainer = Trainer(name, train, config, run, backend, validation, comm)
    if state is not None:
        trainer.restore(*state)
    batches = Batches(name, samples, train, augment, config.seed)
    layout, side = _usual_face(faces, train.centre) if name == "stage1" else (None, None)
    with listening(run, config, name, trainer.step_count) as listen, closing(trainer.train(batches, signals)) as events:
        with compilation_announced():  # the first step needs every kernel
            for event in islice(events, 1):
                listen(event)
        for event in events:
            listen(event)
    run.save_weights(name, trainer.plan, layout, side)
    return trainer.finish()  # after the weights: if killed in between, a resumed run writes them again


def _usual_face(faces: Sequence[Face], rule: str) -> tuple[np.ndarray, float]:
    """Return the mean part centres (6, 2) and the mean longer side in pixels of the training faces.

    They are kept in the weights of stage 1, to place parts that are not found.
    """
    size = NETWORKS["stage1"].size
    centres = [part_centres(face.labels(), rule) for face in faces]
    boxes = [Letterbox.of(face.pixels.shape[0], face.pixels.shape[1], size) for face in faces]
    return mean_layout(centres, boxes, size), float(np.mean([max(face.pixels.shape[:2]) for face in faces]))


_LOSSES_A_READ = 16  # steps between two reads of the losses
_EMA_EVERY = 8  # steps between two updates of the EMA


class Trainer:
    """Training loop of one network.

    Parameters
    ----------
    name : str
    train : Train
    config : Config
    run : Run
        Gets the checkpoints.
    backend : str
    validation : Batch
    comm : Communicator
        Processes of a distributed training.

    Raises
    ------
    InputError
        If the batch cannot be split into the shards, or the shards cannot be divided among the processes.
    """

    def __init__(
        self,
        name: str,
        train: Train,
        config: Config,
        run: Run,
        backend: str,
        validation: Batch,
        comm: Communicator = SINGLE,
    ):
        network = NETWORKS[name]
        graph = icnn_graph(network.labels, network.size, config.network.preset)
        seed = spawned(config.seed, name, WEIGHTS)
        self._comm = comm
        self._shards = own_shards(train, self._comm)
        largest = max(shard.stop - shard.start for shard in shards_of(train.batch, shard_count(train, self._comm)))
        self.plan = Plan(graph, largest, backend, seed=seed, threads=config.threads or None)
        self._name = name
        self._train = train
        self._run = run
        self._validation = validation
        shown = shown_crops(validation, min(CROPS, largest))
        self._shown = Batch(*(array[shown] for array in validation))
        self._optimiser = SGD(schedule_of(train), train.momentum, train.nesterov, train.weight_decay, train.shrink)
        self._best = self.plan.state()["values"]
        self._ema = self._best.astype(np.float64)  # only used if `train.ema` is not 0
        self._progress = Progress()
        self._losses: list = []  # losses of the last steps, not yet read from the device

    def restore(self, tensors: dict[str, np.ndarray], progress: Progress) -> None:
        """Resume from a checkpoint of the run (see `Run.load_state`)."""
        self._best = tensors["best"]
        self._ema = tensors.get("average", self._ema)  # only present if EMA is enabled
        self._progress = progress
        self.plan.restore(tensors, progress.step)
        self._run.forget_log(self._name, progress.step)

    @property
    def step_count(self) -> int:
        """Number of steps done."""
        return self._progress.step

    @property
    def _over(self) -> bool:
        """True after the last step, or if a stopping rule applied at the last validation."""
        progress, settings = self._progress, self._train
        return (
            progress.step >= settings.steps
            or bool(settings.patience and progress.checks_since_best >= settings.patience)
            or bool(settings.stop_after_rises and progress.rises >= settings.stop_after_rises)
        )

    def train(self, batches: Batches, signals: Signals) -> Generator[Event, None, None]:
        """Train until the last step or a stopping rule, then load the weights to keep into the plan.

        Yields
        ------
        Event
            What has happened; the next step is computed when the next event is asked for.

        Raises
        ------
        NotFiniteError, StopError
            As `train_network`.
        """
        progress = self._progress
        if progress.step == 0:
            self._save()
        started, seen = time.perf_counter(), 0
        pictured = batches.epochs(progress.step)
        stop = progress.step if self._over else self._train.steps
        part = slice(self._shards[0].start, self._shards[-1].stop)
        for batch in batches.ahead(progress.step, stop, part=part):
            self._stop_on(signals)
            self._step(batch)
            seen += self._train.batch
            speed = seen / (time.perf_counter() - started)
            validate = progress.step % self._train.validate_every == 0 or progress.step == self._train.steps
            if not validate and len(self._losses) < _LOSSES_A_READ:
                yield StepDone(None, speed)
                continue
            self._read_losses()
            yield StepDone(progress.loss_sum / progress.loss_count, speed)
            if validate:
                yield from self._validate(speed)
                self._save()
                started, seen = time.perf_counter(), 0
                if self._over:
                    break
            elif batches.epochs(progress.step) > pictured:
                with self._as_kept():
                    labels = self._labels_of_shown()
                yield CropsLabelled(progress.step, self._shown, labels)
                pictured = batches.epochs(progress.step)
        kept = self._best if self._train.keep == "best" else self._candidate()
        self.plan.restore({**self.plan.state(), "values": kept}, progress.step)

    def _stop_on(self, signals: Signals) -> None:
        """Save the state and raise StopError, in all processes at the same step, if one of them received a signal."""
        if number := self._comm.all_max(signals.number):
            self._read_losses()
            self._save()
            raise StopError(number)

    def finish(self) -> Progress:
        """Mark the training as finished in the checkpoint, once the weights are written."""
        self._progress.finished = True
        self._save()
        return self._progress

    def _step(self, batch: Batch) -> None:
        if self._comm.size == len(self._shards) == 1:
            loss = self.plan.step(batch.images, batch.labels, self._optimiser, batch.weights)
        else:
            first = self._shards[0].start
            places = [slice(shard.start - first, shard.stop - first) for shard in self._shards]
            parts = [[array[place] for array in batch] for place in places]
            loss = sharded_step(self.plan, parts, self._optimiser, self._comm)
        self._losses.append(loss.copy())
        self._progress.step += 1
        if self._train.ema and self._progress.step % _EMA_EVERY == 0:
            # start with a small decay, so that the initial weights soon vanish from the average
            decay = min(self._train.ema, 1 - 10 / (10 + self._progress.step)) ** _EMA_EVERY
            self._ema += (1 - decay) * (self.plan.state()["values"] - self._ema)

    def _read_losses(self) -> None:
        """Read and sum the losses of the last steps; done only every few steps because it synchronises with the GPU."""
        losses, self._losses = self._losses, []
        for step, loss in enumerate(map(float, losses), self._progress.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise NotFiniteError(
                    f"{self._name}: the loss became {loss} at step {step}; the state of the last "
                    f"validation is kept in {self._run.folder}; try --resume {self._run.folder} --set "
                    f"{self._name}.train.lr={self._train.lr / 4:g} (it is {self._train.lr:g})"
                )
            self._progress.loss_sum += loss
            self._progress.loss_count += 1

    def _save(self) -> None:
        tensors = {**self.plan.state(), "best": self._best}
        if self._train.ema:
            tensors["average"] = self._ema
        self._run.save_state(self._name, tensors, self._progress)

    def _candidate(self) -> np.ndarray:
        """Return the candidate weights: the plan's own, or their EMA if it is enabled."""
        return self._ema.astype(np.float32) if self._train.ema else self.plan.state()["values"]

    @contextmanager
    def _as_kept(self) -> Iterator[np.ndarray]:
        """Temporarily load the candidate weights (EMA if enabled) into the plan and yield them."""
        own, candidate = self.plan.state(), self._candidate()
        self.plan.restore({**own, "values": candidate}, self._progress.step)
        yield candidate
        self.plan.restore(own, self._progress.step)

    def _labels_of_shown(self) -> np.ndarray:
        """Predict the labels of the displayed validation crops with the plan's weights, (n, S, S)."""
        return self.plan.download(self.plan.forward(self._shown.images)).argmax(1)

    def _validate(self, speed: float) -> list[Event]:
        """Score the validation crops, keep the best weights, and return what is to be logged and shown."""
        progress = self._progress
        with self._as_kept() as candidate:
            loss, f = validation_scores(self.plan, self._name, self._validation, self._comm)
            labels = self._labels_of_shown()
        progress.rises = progress.rises + 1 if loss > progress.validation_loss else 0
        progress.validation_loss = loss
        progress.checks_since_best += 1
        if f > progress.best_f:
            progress.best_f, progress.best_step, progress.checks_since_best = f, progress.step, 0
            self._best = candidate
        train_loss = progress.loss_sum / progress.loss_count
        progress.loss_sum, progress.loss_count = 0.0, 0
        rate = self._optimiser.rate(progress.step - 1)
        return [
            Validated(self._name, progress.step, train_loss, rate, loss, f, round(speed, 1)),
            CropsLabelled(progress.step, self._shown, labels),
        ]


def schedule_of(train: Train) -> Schedule:
    """Return the learning rate schedule of a training."""
    if train.schedule == "constant":
        return Constant(train.lr)
    return Cosine(train.lr, train.steps, round(train.warmup * train.steps))


def validation_scores(plan: Plan, name: str, validation: Batch, comm: Communicator = SINGLE) -> tuple[float, float]:
    """Compute the mean cross-entropy over all pixels inside the images and the mean F of the validation crops.

    In stage 1 left and right are separate labels; labels absent from both truth and prediction are skipped. The crops
    are distributed over the processes; all get the same scores, which do not depend on how they are distributed.

    Returns
    -------
    loss, f : float
    """
    labels = NETWORKS[name].labels
    starts = range(0, len(validation.images), plan.batch)
    # One row per batch: loss times weight, weight, confusion. Only one process fills a row, so all_reduce is exact.
    found = np.zeros((len(starts), 2 + labels * labels))
    for row in range(comm.rank, len(starts), comm.size):
        images, truth, weights = (array[starts[row] : starts[row] + plan.batch] for array in validation)
        logits = plan.download(plan.forward(images))
        weight = float(weights.sum(dtype=np.float64))
        inside = weights > 0
        matrix = confusion(truth[inside], logits.argmax(1)[inside], labels)
        found[row] = float(plan.loss(truth, weights)) * weight, weight, *matrix.ravel()
    comm.all_reduce(found)
    loss, weight = found[:, 0].cumsum()[-1], found[:, 1].cumsum()[-1]  # sequential sums, in the order of the crops
    return float(loss / weight), mean_f(found[:, 2:].sum(0).reshape(labels, labels).astype(np.int64))
