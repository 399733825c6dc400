"""Events of one network's training, and what a run shows and writes when they happen.

`Trainer.train` yields events and knows nothing of their use; `listening` makes them a progress bar, lines of log.jsonl,
pictures of validation crops and the live report.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
from tqdm import tqdm

from icnn.config import Config
from icnn.train.batches import Batch
from icnn.train.live import save_crops, write_progress
from icnn.train.run_folder import Run


@dataclass(frozen=True)
class StepDone:
    """One update was made.

    Attributes
    ----------
    loss : float or None
        Mean loss since the last validation; None between two reads of the losses, which wait for the device.
    images_per_second : float
        Since the last validation.
    """

    loss: float | None
    images_per_second: float


@dataclass(frozen=True)
class CropsLabelled:
    """The displayed validation crops were labelled anew: at the end of an epoch, and at each validation.

    Attributes
    ----------
    step : int
    crops : Batch
    labels : (n, S, S) integers
        Labels predicted for `crops`.
    """

    step: int
    crops: Batch
    labels: np.ndarray


@dataclass(frozen=True)
class Validated:
    """The validation crops were scored; the attributes are the keys of a line of log.jsonl.

    Attributes
    ----------
    network : str
    step : int
    loss : float
        Mean training loss since the last validation.
    lr : float
        Learning rate of the last step.
    validation_loss, validation_f : float
    images_per_second : float
    """

    network: str
    step: int
    loss: float
    lr: float
    validation_loss: float
    validation_f: float
    images_per_second: float


Event = StepDone | CropsLabelled | Validated


@contextmanager
def listening(the_run: Run, config: Config, name: str, done: int) -> Iterator[Callable[[Event], None]]:
    """Context manager that yields a function which reacts to an event of a network's training.

    Parameters
    ----------
    the_run : Run
        If it does not write, nothing is shown either: another process does both.
    config : Config
    name : str
        Name of the network.
    done : int
        Number of steps done before.
    """
    if not the_run.writes:
        yield lambda event: None
        return
    steps = config.for_network(name)[0].steps
    with tqdm(total=steps, initial=done, desc=name, unit="step", disable=None, dynamic_ncols=True) as bar:

        def listen(event: Event) -> None:
            match event:
                case StepDone():
                    if event.loss is not None:
                        bar.set_postfix_str(f"loss {event.loss:.4f}, {event.images_per_second:.0f} images/s", False)
                    bar.update()
                case Validated():
                    the_run.log(asdict(event))
                case CropsLabelled():
                    save_crops(the_run, name, event.step, event.crops, event.labels)
                    write_progress(the_run, config)

        yield listen
