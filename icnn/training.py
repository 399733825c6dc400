"""One network's training (Sec. 2.5 and 4.2): batches, SGD, validation, early stopping, states."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from tqdm import tqdm

from icnn.augment import Letterbox
from icnn.batches import WEIGHTS, Batch, Batches, samples_of, spawned, validation_batch
from icnn.command import NotFiniteError, Signals, compilation_announced
from icnn.config import Config, Train
from icnn.dataset import Face
from icnn.localise import mean_layout, part_centres
from icnn.metrics import confusion, mean_f
from icnn.network import icnn_graph
from icnn.parts import NETWORKS
from icnn.runs import Progress, Run
from icnn.watch import CROPS, save_crops, shown_crops, write_progress
from minicnn import SGD, Plan
from minicnn.sgd import Constant, Cosine, Schedule


def train_network(
    name: str,
    faces: Sequence[Face],
    validation_faces: Sequence[Face],
    config: Config,
    run: Run,
    backend: str,
    signals: Signals,
) -> Progress:
    """Train one network and write its weights; goes on from the run's state if there is one.

    Raises
    ------
    InputError
        If the faces have none of the network's parts.
    NotFiniteError
        If the loss becomes NaN or infinite; the run's state is the last good one.
    StopError
        After a signal; the run's state is that of this very step.
    """
    if (state := run.load_state(name)) is not None and state[1].finished:
        return state[1]
    train, augment = config.for_network(name)
    samples = samples_of(name, faces, train.centre)
    validation = validation_batch(samples_of(name, validation_faces, train.centre), train)
    trainer = Trainer(name, train, config, run, backend, validation)
    if state is not None:
        trainer.restore(*state)
    batches = Batches(name, samples, train, augment, config.seed)
    metadata = {"network": name}
    if name == "stage1":
        metadata["layout"] = _layout(faces, train.centre)
        metadata["side"] = str(np.mean([max(face.pixels.shape[:2]) for face in faces]))
    trainer.train(batches, signals)
    trainer.plan.save(run.weights_path(name), **metadata)
    return trainer.finish()  # after the weights: a kill between the two makes them again


def _layout(faces: Sequence[Face], rule: str) -> str:
    """Mean part centres of the training faces, for the fallback of stage 1's weights."""
    size = NETWORKS["stage1"].size
    centres = [part_centres(face.labels(), rule) for face in faces]
    boxes = [Letterbox.of(face.pixels.shape[0], face.pixels.shape[1], size) for face in faces]
    return json.dumps(mean_layout(centres, boxes, size).round(4).tolist())


_LOSSES_A_READ = 16  # steps
_AVERAGE_EVERY = 8  # steps


class Trainer:
    """The loop around a plan's steps.

    Parameters
    ----------
    name : str
    train : Train
    config : Config
    run : Run
    backend : str
    validation : Batch
    """

    def __init__(self, name: str, train: Train, config: Config, run: Run, backend: str, validation: Batch):
        network = NETWORKS[name]
        graph = icnn_graph(network.labels, network.size, config.network.preset)
        seed = spawned(config.seed, name, WEIGHTS)
        self.plan = Plan(graph, train.batch, backend, seed=seed, threads=config.threads or None)
        self._name = name
        self._train = train
        self._config = config
        self._run = run
        self._validation = validation
        shown = shown_crops(validation, min(CROPS, train.batch))
        self._shown = Batch(*(array[shown] for array in validation))
        self._optimiser = SGD(schedule_of(train), train.momentum, train.nesterov, train.weight_decay, train.shrink)
        self._best = self.plan.state()["values"]
        self._average = self._best.astype(np.float64)  # used if `train.average` asks for it
        self._progress = Progress()
        self._losses: list = []  # of the last steps, still on the device

    def restore(self, tensors: dict[str, np.ndarray], progress: Progress) -> None:
        """Go on from a state of the run."""
        self._best = tensors["best"]
        self._average = tensors.get("average", self._average)  # there if the settings ask for it
        self._progress = progress
        self.plan.restore(tensors, progress.step)
        self._run.forget_log(self._name, progress.step)

    @property
    def _over(self) -> bool:
        """Whether the last step is made, or a stopping rule applied at the last validation."""
        progress, settings = self._progress, self._train
        return (
            progress.step >= settings.steps
            or bool(settings.patience and progress.checks_since_best >= settings.patience)
            or bool(settings.stop_after_rises and progress.rises >= settings.stop_after_rises)
        )

    def train(self, batches: Batches, signals: Signals) -> None:
        """Run to the last step or until a stopping rule applies; then the plan holds the weights to keep."""
        progress, steps = self._progress, self._train.steps
        if progress.step == 0:
            self._save()
        bar = tqdm(total=steps, initial=progress.step, desc=self._name, unit="step", disable=None, dynamic_ncols=True)
        started, seen = time.perf_counter(), 0
        pictured = batches.epochs(progress.step)
        with bar:
            for batch in batches.ahead(progress.step, progress.step if self._over else steps):
                if signals.number:
                    self._read_losses()
                    self._save()
                    signals.check()
                with compilation_announced():
                    self._step(batch)
                seen += len(batch.images)
                speed = seen / (time.perf_counter() - started)
                validate = progress.step % self._train.validate_every == 0 or progress.step == steps
                if validate or len(self._losses) == _LOSSES_A_READ:
                    self._read_losses()
                    loss = progress.loss_sum / progress.loss_count
                    bar.set_postfix_str(f"loss {loss:.4f}, {speed:.0f} images/s", False)
                    if batches.epochs(progress.step) > pictured and not validate:
                        self._picture()
                        pictured = batches.epochs(progress.step)
                bar.update()
                if validate:
                    self._validate(speed)
                    self._save()
                    started, seen = time.perf_counter(), 0
                    if self._over:
                        break
        kept = self._best if self._train.keep == "best" else self._candidate()
        self.plan.restore({**self.plan.state(), "values": kept}, progress.step)

    def finish(self) -> Progress:
        """Note that the weights are where they belong."""
        self._progress.finished = True
        self._save()
        return self._progress

    def _step(self, batch: Batch) -> None:
        loss = self.plan.step(batch.images, batch.labels, self._optimiser, batch.weights)
        self._losses.append(loss.copy())
        self._progress.step += 1
        if self._train.average and self._progress.step % _AVERAGE_EVERY == 0:
            # early on the average is over few steps, so that the first weights do not stay in it for long
            decay = min(self._train.average, 1 - 10 / (10 + self._progress.step)) ** _AVERAGE_EVERY
            self._average += (1 - decay) * (self.plan.state()["values"] - self._average)

    def _read_losses(self) -> None:
        """Add up the losses of the last steps: once in a while, since a GPU is waited for."""
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
        if self._train.average:
            tensors["average"] = self._average
        self._run.save_state(self._name, tensors, self._progress)

    def _candidate(self) -> np.ndarray:
        """The parameters that would be kept now: the plan's own, or their average."""
        return self._average.astype(np.float32) if self._train.average else self.plan.state()["values"]

    @contextmanager
    def _as_kept(self) -> Iterator[np.ndarray]:
        """While it lasts, the plan has the parameters that would be kept now, which are what it yields."""
        own, candidate = self.plan.state(), self._candidate()
        self.plan.restore({**own, "values": candidate}, self._progress.step)
        yield candidate
        self.plan.restore(own, self._progress.step)

    def _picture(self) -> None:
        """Write what the network makes of a few validation crops, and the page of the training with them."""
        with self._as_kept():
            labels = self.plan.download(self.plan.forward(self._shown.images)).argmax(1)
        save_crops(self._run, self._name, self._progress.step, self._shown, labels)
        write_progress(self._run, self._config)

    def _validate(self, speed: float) -> None:
        """Score the validation crops, log, remember the best weights."""
        progress = self._progress
        with self._as_kept() as candidate:
            loss, f = validation_scores(self.plan, self._name, self._validation)
        progress.rises = progress.rises + 1 if loss > progress.validation_loss else 0
        progress.validation_loss = loss
        progress.checks_since_best += 1
        if f > progress.best_f:
            progress.best_f, progress.best_step, progress.checks_since_best = f, progress.step, 0
            self._best = candidate
        self._run.log(
            {
                "network": self._name,
                "step": progress.step,
                "loss": progress.loss_sum / progress.loss_count,
                "lr": self._optimiser.rate(progress.step - 1),
                "validation_loss": loss,
                "validation_f": f,
                "images_per_second": round(speed, 1),
            }
        )
        progress.loss_sum, progress.loss_count = 0.0, 0
        self._picture()


def schedule_of(train: Train) -> Schedule:
    """The learning rate over the steps of a training."""
    if train.schedule == "constant":
        return Constant(train.lr)
    return Cosine(train.lr, train.steps, round(train.warmup * train.steps))


def validation_scores(plan: Plan, name: str, validation: Batch) -> tuple[float, float]:
    """Mean cross-entropy over all pixels in images, and mean F of the network's labels, on crops.

    In stage 1 left and right count apart; labels that neither the truth nor the prediction has do not count.
    """
    labels = NETWORKS[name].labels
    matrix = np.zeros((labels, labels), np.int64)
    loss_sum = weight_sum = 0.0
    for start in range(0, len(validation.images), plan.batch):
        images, truth, weights = (array[start : start + plan.batch] for array in validation)
        logits = plan.download(plan.forward(images))
        weight = float(weights.sum(dtype=np.float64))
        loss_sum += float(plan.loss(truth, weights)) * weight
        weight_sum += weight
        inside = weights > 0
        matrix += confusion(truth[inside], logits.argmax(1)[inside], labels)
    return loss_sum / weight_sum, mean_f(matrix)
