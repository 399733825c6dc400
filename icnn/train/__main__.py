"""Command ``python -m icnn.train``: train the five networks, fit the modulation, evaluate, write the report."""

import json
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from icnn.cli import Parser, Signals, compilation_announced, existing_folder, limit_memory, run
from icnn.config import Config, config_text, load_config, recipes
from icnn.errors import InputError
from icnn.evaluate.baselines import ColourClassifier, ConstantPrior
from icnn.evaluate.metrics import confusion, f_measures
from icnn.evaluate.scoring import Evaluation, evaluate, fit_pairs
from icnn.model.modulation import PLAIN, Fit
from icnn.model.pipeline import Pipeline, load_pipeline
from icnn.model.weights import complete_network
from icnn.report.page import format_table, write_report
from icnn.report.showcase import pipeline_example, result_examples
from icnn.stages import NETWORKS
from icnn.train.batches import require_parts, shard_count
from icnn.train.run_folder import ReadOnlyRun, Run, write_json
from icnn.train.splits import Splits, digest_of, load_splits
from icnn.train.trainer import train_network
from minicnn.checkpoint import program_version
from minicnn.distributed import Communicator, join
from minicnn.kernels import choose_backend


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; see ``--help``."""
    parser = _parser()
    options = parser.parse_args(argv)
    limit_memory(options.memory)
    if options.resume and (options.out or options.config):
        parser.error("--resume RUN has its own folder and settings: leave out --out, --config")
    comm = join()
    with Signals() as signals, ExitStack() as held:
        folder = ReadOnlyRun if comm.rank else Run  # of several processes, one writes
        the_run = folder(options.resume) if options.resume else folder.new(options.out)
        config = _settings(options, the_run, comm)
        if options.resume:
            held.enter_context(the_run.locked())
        backend, reason = choose_backend(options.backend)
        the_run.say(f"{the_run.folder}: {reason}")
        splits = load_splits(config, the_run, signals)
        faces = _check_faces(comm, config, splits)
        if options.resume:
            the_run.require_faces(faces)
        signals.check()
        if not options.resume:  # nothing is written before all user input is checked
            held.enter_context(the_run.locked())
            the_run.require_new()  # another process may have created it meanwhile
        the_run.open(config)
        the_run.note_faces(faces)
        if splits.drawn:
            the_run.save_faces(splits.drawn, config.synthetic)
        for name in NETWORKS:
            done = train_network(name, splits.exemplars, splits.tuning, config, the_run, backend, signals, comm)
            the_run.say(f"{name}: {done.step} steps, validation F {done.best_f:.3f} at step {done.best_step}")
        if the_run.writes:
            _evaluate(the_run, config, splits, backend, signals)
            the_run.drop_faces()  # nothing is left to resume
    return 0


def _check_faces(comm: Communicator, config: Config, splits: Splits) -> str:
    """Check that the faces can be trained on, and are the same in all processes; return their digest."""
    require_parts(splits.exemplars)
    digest = digest_of([*splits.exemplars, *splits.tuning])
    require_same(comm, config, digest)
    return digest


def require_same(comm: Communicator, config: Config, faces: str) -> None:
    """Check that all processes have the same settings, faces and program version.

    Parameters
    ----------
    comm : Communicator
    config : Config
        Compared without `data` and `threads`, which may differ between machines.
    faces : str
        Digest of the faces, from `digest_of`.

    Raises
    ------
    InputError
        In every process, if they differ or a batch cannot be split among this many processes.
    """
    for network in NETWORKS:
        shard_count(config.for_network(network)[0], comm)
    settings = config_text(replace(config, data="", threads=0))
    for what, text in (("settings", settings), ("versions of the program", program_version()), ("faces", faces)):
        number = zlib.crc32(text.encode())
        if comm.all_max(number) != -comm.all_max(-number):
            raise InputError(f"expected the same {what} in all {comm.size} processes, got others in some of them")


def _evaluate(the_run: Run, config: Config, splits: Splits, backend: str, signals: Signals) -> None:
    """Fit the modulation, evaluate the configured split, and write weights with model card, scores and report."""
    pipeline = load_pipeline(the_run.folder, backend, config.evaluate.batch, config.threads or None)
    pipeline.recentre = config.evaluate.recentre
    with compilation_announced():
        pipeline.warm_up()
    track = signals.tracked("modulation")
    fits = fit_pairs(pipeline, splits.tuning, config.evaluate.batch, config.modulation.method, track)
    result = evaluate(pipeline, splits.evaluated, config.evaluate.batch, signals.tracked("evaluate"))
    _write_results(the_run, config, splits, pipeline, fits, result)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m icnn.train",
        description="Train stage 1 and the four stage-2 networks, fit the background modulation on the tuning split, "
        "evaluate end to end and print the table. Without --data: synthetic faces, minutes on two cores.",
    )
    parser.add_argument("--data", type=existing_folder, metavar="DIR", help="faces in the layout of Smith et al.")
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        help=f"settings: one of the recipes {', '.join(recipes())}, or a TOML file (default: default)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting, for example train.steps=1000",
    )
    parser.add_argument("--out", type=Path, metavar="RUN", help="new folder (default: runs/<date-time>)")
    parser.add_argument("--resume", type=existing_folder, metavar="RUN", help="go on with a training that was stopped")
    parser.add_backend()
    parser.add_argument("--final", action="store_true", help="evaluate the testing split")
    parser.add_threads()
    parser.add_memory()
    return parser


def _settings(options, the_run: Run, comm: Communicator) -> Config:
    """Load the settings of the run; command-line options take precedence over the configuration."""
    config = load_config(the_run.config_path if options.resume else options.config, options.set)
    if options.data:
        config = replace(config, data=str(options.data.resolve()))
    if options.threads:
        config = replace(config, threads=options.threads)
    elif comm.threads:
        config = replace(config, threads=comm.threads)
    if options.final:
        config = replace(config, evaluate=replace(config.evaluate, split="testing"))
    return config


def _card(config: Config, splits: Splits, summary: dict[str, Any]) -> str:
    """Return the model card as JSON: settings, data, scores and terms of use."""
    settings = replace(config, data="")  # a local path is meaningless on other machines
    about = {"data": config.card.data or splits.source, "terms": config.card.terms}
    return json.dumps({**about, "scores": summary, "config": config_text(settings)})


def baseline_scores(splits: Splits) -> dict[str, dict[str, float | None]]:
    """Compute the F-measures of two baselines that ignore shape, to show how much colour and position alone achieve.

    Returns
    -------
    dict
        Title of the baseline -> name of the measure -> F, or None if undefined.
    """
    scores = {}
    for title, baseline in (("constant prior", ConstantPrior()), ("colour classifier", ColourClassifier())):
        baseline.fit(splits.exemplars)
        matrices = [confusion(face.labels(), baseline.predict(face)) for face in splits.evaluated]
        scores[title] = f_measures(np.sum(matrices, axis=0))
    return scores


def _write_results(
    the_run: Run,
    config: Config,
    splits: Splits,
    pipeline: Pipeline,
    fits: dict[str, Fit],
    result: Evaluation,
) -> None:
    summary = result.summary(config.evaluate.split)
    card = _card(config, splits, summary)
    for name in NETWORKS:
        pair = pipeline.pairs.get(name, PLAIN)
        complete_network(the_run.weights_path(name), pair, pipeline.recentre, card)
    baselines = baseline_scores(splits)
    modulation = {
        name: {"beta": fit.pair[0], "beta0": fit.pair[1], "before": fit.before, "after": fit.after}
        for name, fit in fits.items()
    }
    details = {"source": splits.source, **result.details(), "baselines": baselines, "modulation": modulation}
    write_json(the_run.folder / "evaluation.json", summary)
    write_json(the_run.folder / "details.json", details)
    write_report(
        the_run.folder / "report.html",
        title=f"iCNN: {the_run.folder.name}",
        evaluation=summary,
        details=details,
        log=the_run.read_log(),
        config_text=config_text(config),
        examples=result_examples(pipeline, splits.evaluated, result.per_image["predicted"]),
        pipeline=pipeline_example(pipeline, splits.evaluated, result.per_image["predicted"]),
    )
    print(format_table(summary, baselines.items(), splits.source))
    print(f"\nweights, figures and report: {the_run.folder}/weights, evaluation.json, report.html")


if __name__ == "__main__":
    run(main, "icnn.train")
