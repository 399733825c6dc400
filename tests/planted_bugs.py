"""Plant a bug, see a test fail: ``python tests/planted_bugs.py [NUMBER ...]``.

Each entry is one small change to the source that a person might make by
mistake, and the test that must catch it. The source is copied, changed there,
and only the named test runs, one on each core; the working tree is never
touched. Exit code 1 if a bug is not caught, or if an entry no longer fits the
source.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("minicnn", "icnn", "tests", "benchmarks", "pyproject.toml")


class Bug(NamedTuple):
    """What goes wrong, the file, the right text and the wrong one, and the test that catches it."""

    what: str
    file: str
    right: str
    wrong: str
    test: str


REFERENCE, LAYERS = "minicnn/kernels/reference.py", "minicnn/layers.py"
SCHEDULE = "minicnn/planner.py"
WINOGRAD, WINOGRAD_TILES = "minicnn/kernels/cpu/conv_winograd.py", "minicnn/kernels/cpu/compiled/winograd_tiles.py"
WINOGRAD_LOOPS = "minicnn/kernels/cpu/compiled/conv_winograd.py"
GPU, GPU_DEVICE = "minicnn/kernels/cuda/backend.py", "minicnn/kernels/cuda/device.py"
RESAMPLE, CENTRES, MODULATION = "icnn/data/loops.py", "icnn/model/centres.py", "icnn/model/modulation.py"

BUGS = [
    Bug(
        "concatenation: coarser before finer",
        "icnn/model/network.py",
        'graph.add(f"{name}/concat", Concat(), *sources)',
        'graph.add(f"{name}/concat", Concat(), own, *sources[:0:-1])',
        "test_graph.py::test_concatenation_is_own_finer_coarser",
    ),
    Bug(
        "parity maps: row parity first",
        REFERENCE,
        "    y[:, offset, :, 0::2] = 0\n    y[:, offset, :, 1::2] = 1\n    y[:, offset + 1, 0::2] = 0\n"
        "    y[:, offset + 1, 1::2] = 1\n",
        "    y[:, offset + 1, :, 0::2] = 0\n    y[:, offset + 1, :, 1::2] = 1\n    y[:, offset, 0::2] = 0\n"
        "    y[:, offset, 1::2] = 1\n",
        "test_reference.py::test_parity_maps_are_columns_then_rows",
    ),
    Bug(
        "convolution instead of correlation",
        REFERENCE,
        "np.matmul(w.reshape(o, -1), col, out=y[n].reshape(o, -1))",
        "np.matmul(w[:, :, ::-1, ::-1].reshape(o, -1), col, out=y[n].reshape(o, -1))",
        "test_reference.py::test_weights_are_not_flipped",
    ),
    Bug(
        "max pooling: the last maximum takes the gradient",
        REFERENCE,
        "        np.copyto(left[out], 0, where=hit)\n",
        "        pass\n",
        "test_kernels.py::test_a_constant_plane_gives_to_the_first_pixel_of_each_window[numpy-2-2-0]",
    ),
    Bug(
        "max pooling: padding at the bottom and right",
        REFERENCE,
        "kernel_size, stride, padding):\n        np.maximum(",
        "kernel_size, stride, 0):\n        np.maximum(",
        "test_reference.py::test_max_pooling_and_its_gradient",
    ),
    Bug(
        "a dropped gradient addition",
        "minicnn/passes.py",
        "adds.append(name in written)",
        "adds.append(False)",
        "test_plan.py::test_a_gradient_with_several_writers_is_their_sum[numpy-True]",
    ),
    Bug(
        "a life ends before the backward pass reads it",
        "minicnn/planner.py",
        'and "x" in reader.layer.backward_reads',
        "and False",
        "test_plan.py::test_sharing_and_poison_change_no_bit[numpy-True-paper]",
    ),
    Bug(
        "inputs of a concatenation on top of each other",
        SCHEDULE,
        "            channel += node.shape[0]\n",
        "            channel += 0\n",
        "test_plan.py::test_every_array_of_a_concatenation_lies_in_it",
    ),
    Bug(
        "a gradient moved although another one is stored there first",
        SCHEDULE,
        "if {name, concat.name} <= needed and all(time < complete for time in others):",
        "if {name, concat.name} <= needed:",
        "test_plan.py::test_a_gradient_moves_only_where_others_add_to_it_afterwards[numpy-False]",
    ),
    Bug(
        "the zeros around planes taken for granted",
        "minicnn/kernels/cpu/layout.py",
        "return owner.halo if (*x.shape[2:], *x.strides[2:]) == owner.plane else -1",
        "return owner.halo",
        "test_compiled.py::test_a_halo_is_that_of_whole_planes_made_for_it",
    ),
    Bug(
        "two of equal numbers take the gradient of their maximum",
        "minicnn/kernels/cpu/compiled/pool.py",
        "second = b == peak and a != peak",
        "second = b == peak",
        "test_kernels.py::test_ties_in_an_interlinking_layer[numba]",
    ),
    Bug(
        "a row of the window lost at the lower border",
        "minicnn/kernels/cpu/conv_direct.py",
        "np.minimum(k, h + before - i[:, 0])",
        "np.minimum(k, h + before - i[:, 0] - 1)",
        "test_kernels.py::test_convolution_agrees_with_the_reference[numba-K3-C26-O10-(13,9)-N3]",
    ),
    Bug(
        "more tasks than planes",
        "minicnn/kernels/cpu/kernel.py",
        "    return one_a_plane(x)\n",
        "    return one_a_plane(_)\n",
        "test_compiled.py::test_a_kernel_writes_nothing_but_its_outputs[upsample_nearest2d_forward]",
    ),
    Bug(
        "Winograd: a sign in the transform of the input",
        WINOGRAD_TILES,
        "fma(5.25, sub(d[4], d[2]), sub(d[0], d[6]))",
        "fma(5.25, sub(d[2], d[4]), sub(d[0], d[6]))",
        "test_kernels.py::test_convolution_agrees_with_the_reference[numba-K5-C24-O8-(16,16)-N3]",
    ),
    Bug(
        "Winograd: the point 1 of the kernel matrix has the scale of another",
        WINOGRAD_TILES,
        "scale = np.prod([at - other for other in points if other != at])",
        "scale = np.prod([at - other for other in points[:-1] if other != at])",
        "test_kernels.py::test_convolution_agrees_with_the_reference[numba-K5-C24-O8-(16,16)-N3]",
    ),
    Bug(
        "Winograd: tiles that pad the last vector count in the weight gradient",
        WINOGRAD_LOOPS,
        "real = counts[task, 2] - (r * n_quads + q) * (lane_count // TILE)",
        "real = lane_count",
        "test_compiled.py::test_convolution_of_any_shape",
    ),
    Bug(
        "Winograd: planes that are not whole tiles are copied beside what memory held",
        WINOGRAD,
        "[partial(memory.fill, 0), partial(np.copyto, copy[:, :, : x.shape[2], : x.shape[3]], x)]",
        "[partial(np.copyto, copy[:, :, : x.shape[2], : x.shape[3]], x)]",
        "test_compiled.py::test_convolution_of_any_shape",
    ),
    Bug(
        "Winograd: kernels are not rotated for the input gradient",
        WINOGRAD_LOOPS,
        "t[TAPS * a + b] = w[c, o, k - 1 - top - a, k - 1 - left - b]",
        "t[TAPS * a + b] = w[c, o, top + a, left + b]",
        "test_kernels.py::test_convolution_agrees_with_the_reference[numba-K9-C10-O7-(64,64)-N1]",
    ),
    Bug(
        "Winograd: kernels transformed once, not at each call",
        WINOGRAD,
        "steps.append(_TRANSFORM_WEIGHTS.bind(u, w, taps, out_channels, transposed))",
        "_TRANSFORM_WEIGHTS.bind(u, w, taps, out_channels, transposed)()",
        "test_plan.py::test_written_parameters_count_from_the_next_forward[numba]",
    ),
    Bug(
        "compiled kernels found again although their sources changed",
        "minicnn/kernels/cpu/store.py",
        "return hashlib.sha256(sources + ",
        "return hashlib.sha256(",
        "test_compiled.py::test_compiled_kernels_of_other_sources_are_not_used",
    ),
    Bug(
        "damaged machine code is run",
        "minicnn/kernels/cpu/store.py",
        "if check_sum == _check_sum(content):",
        "if check_sum:",
        "test_compiled.py::test_damaged_code_is_compiled_again",
    ),
    Bug(
        "a signal waits for kernels to compile",
        "icnn/cli.py",
        "if self.number or any(one.pending for one in _announced):",
        "if self.number:",
        "test_commands.py::test_a_signal_does_not_wait_for_kernels_to_compile",
    ),
    Bug(
        "tanh gradient without the square",
        REFERENCE,
        "np.multiply(y, y, out=product)",
        "np.multiply(y, 1, out=product)",
        "test_gradients.py::test_tanh_gradient[numpy]",
    ),
    Bug(
        "loss divided by the pixels, not by the weights",
        REFERENCE,
        "total[...] = np.sum(weights, dtype=np.float64)",
        "total[...] = weights.size",
        "test_kernels.py::test_loss_is_the_weighted_mean_of_its_pixels[numpy-float64]",
    ),
    Bug(
        "momentum applied after the step",
        REFERENCE,
        "    velocity *= momentum\n    velocity += step\n",
        "    velocity += step\n    velocity *= momentum\n",
        "test_sgd.py::test_updates_are_those_by_hand",
    ),
    Bug(
        "weight decay with the wrong sign",
        REFERENCE,
        "np.multiply(values, weight_decay, out=step)",
        "np.multiply(values, -weight_decay, out=step)",
        "test_sgd.py::test_updates_are_those_by_hand",
    ),
    Bug(
        "velocity not restored from a state",
        "minicnn/parameters.py",
        '"values": self.flat, "velocity": self.flat_velocity}',
        '"values": self.flat}',
        "test_checkpoint.py::test_a_training_goes_on_bit_for_bit[numpy]",
    ),
    Bug(
        "file numbers KK taken as ids",
        "icnn/classes.py",
        '    ("04",),\n    ("03",),\n',
        '    ("03",),\n    ("04",),\n',
        "test_dataset.py::test_file_numbers_are_not_ids",
    ),
    Bug(
        "skin not summed into the background",
        "icnn/classes.py",
        '("00", "01", "10")',
        '("00", "10")',
        "test_dataset.py::test_skin_and_hair_are_summed_into_the_background_before_arg_max",
    ),
    Bug(
        "letterbox without pixel centres: half a pixel off",
        "icnn/data/geometry.py",
        "(np.asarray(points) + 0.5 - (self.left, self.top)) / self.scale - 0.5",
        "(np.asarray(points) - (self.left, self.top)) / self.scale",
        "test_geometry.py::test_downscaling_by_4_is_the_mean_of_boxes",
    ),
    Bug(
        "patch turned about a pixel, not about its middle",
        "icnn/data/augment.py",
        "        middle = (size - 1) / 2\n        angle",
        "        middle = size / 2\n        angle",
        "test_geometry.py::test_a_dot_of_stage_1_lands_in_the_same_place_in_image_and_label",
    ),
    Bug(
        "right sides not mirrored in training",
        "icnn/data/geometry.py",
        "affine((-1 if mirrored else 1, 1), (size - 1) / 2, centre)",
        "affine((1, 1), (size - 1) / 2, centre)",
        "test_batches.py::test_a_right_part_is_trained_on_as_the_left_part_of_the_mirrored_face",
    ),
    Bug(
        "the other side's part labelled in a patch",
        "icnn/stages.py",
        "        table[list(self.ids)] = np.arange(1, len(self.ids) + 1)\n",
        "        table[list(self.ids)] = np.arange(1, len(self.ids) + 1)\n        table[3] = table[1]\n",
        "test_geometry.py::test_a_patch_knows_its_own_parts_and_takes_the_other_side_for_background",
    ),
    Bug(
        "mean in place of the median",
        CENTRES,
        "np.median(axis) if rule",
        "np.mean(axis) if rule",
        "test_geometry.py::test_a_centre_is_the_median_of_each_axis",
    ),
    Bug(
        "maps of right sides pasted without turning them back",
        "icnn/model/patches.py",
        "        p = p[:, :, ::-1]\n",
        "        pass\n",
        "test_geometry.py::test_pasting_undoes_cutting",
    ),
    Bug(
        "the last patch wins an overlap",
        "icnn/model/patches.py",
        "joint[part][there] = np.minimum(values, most)",
        "joint[1:, *there], joint[part][there] = 0, np.minimum(values, most)",
        "test_geometry.py::test_the_highest_probability_wins_an_overlap",
    ),
    Bug(
        "a part that its own patch takes for background beats the background of another patch",
        "icnn/model/patches.py",
        "np.minimum(values, most)",
        "values",
        "test_pipeline.py::test_pasting_is_what_it_is_by_hand_with_modulation",
    ),
    Bug(
        "a crop leaves the photograph where it need not",
        "icnn/model/pipeline.py",
        "np.clip(corner, np.minimum(room, 0), np.maximum(room, 0))",
        "np.asarray(corner)",
        "test_pipeline.py::test_a_crop_stays_in_the_photograph",
    ),
    Bug(
        "mirror ids not swapped",
        "icnn/stages.py",
        'Patch("right_eye", "eye", (4,), mirrored=True)',
        'Patch("right_eye", "eye", (2,), mirrored=True)',
        "test_pipeline.py",
    ),
    Bug(
        "normalised over the padding too",
        RESAMPLE,
        "                if inside[i, j]:\n                    count += 1\n",
        "                if True:\n                    count += 1\n",
        "test_geometry.py::test_normalised_channels_have_mean_0_and_std_1_over_real_pixels",
    ),
    Bug(
        "sign of beta0",
        MODULATION,
        "modulated[:, 0] = beta * modulated[:, 0] + beta0",
        "modulated[:, 0] = beta * modulated[:, 0] - beta0",
        "test_modulation.py::test_modulation_touches_the_background_map_alone",
    ),
    Bug(
        "the fit kept although the plain pair is better",
        MODULATION,
        "        if f > after:\n",
        "        if True:\n",
        "test_modulation.py::test_a_fit_that_does_not_beat_the_plain_pair_is_dropped",
    ),
    Bug(
        "a nose pixel called lip counted once",
        "icnn/evaluate/metrics.py",
        "columns.sum(both) - tp",
        "columns[..., 0, :].sum(-1)",
        "test_metrics.py::test_a_nose_pixel_called_lip_is_two_errors_in_micro_and_none_in_union",
    ),
    Bug(
        "left and right not merged",
        "icnn/evaluate/metrics.py",
        '"eye": (2, 4)',
        '"eye": (2,)',
        "test_metrics.py::test_a_part_on_the_wrong_side_of_the_face_counts_as_right",
    ),
    Bug(
        "every epoch in the same order",
        "icnn/train/batches.py",
        "ORDER, epoch)",
        "ORDER, 0)",
        "test_batches.py::test_every_sample_appears_once_in_an_epoch",
    ),
    Bug(
        "last weights written where the best were asked for",
        "icnn/train/trainer.py",
        'self._best if self._train.keep == "best" else self._candidate()',
        "self._candidate()",
        "test_training.py::test_best_and_last_weights_are_kept_as_configured",
    ),
    Bug(
        "left and right kept in a mirrored face",
        "icnn/train/batches.py",
        "labels = MIRRORED[labels]",
        "pass",
        "test_geometry.py::test_in_a_mirrored_face_left_and_right_swap",
    ),
    Bug(
        "background weighs like parts",
        "icnn/train/batches.py",
        "weights[labels > 0] *=",
        "weights[labels >= 0] *=",
        "test_batches.py::test_pixels_of_parts_weigh_what_is_asked_for",
    ),
    Bug(
        "the average is validated, the last weights are kept",
        "icnn/train/trainer.py",
        "self._best = candidate",
        'self._best = own["values"]',
        "test_training.py::test_the_average_of_the_weights_is_what_counts",
    ),
    Bug(
        "mirrored patches cut once more on the wrong side",
        "icnn/model/pipeline.py",
        "labels[:, ::-1] if patch.mirrored else labels",
        "labels",
        "test_pipeline.py::test_a_patch_that_misses_its_part_is_cut_once_more_around_it",
    ),
    Bug(
        "a box that moves onto a face takes the inverse of its size",
        "icnn/parse/search.py",
        "Box(x, y, box.length * scale,",
        "Box(x, y, box.length / scale,",
        "test_parser.py::test_a_box_moves_onto_the_face_in_its_square",
    ),
    Bug(
        "stages that see nothing in common are a face",
        "icnn/parse/parser.py",
        "if prediction.sureness >= least:",
        "if prediction.sureness >= -1:",
        "test_parser.py::test_stages_that_see_different_things_are_no_face",
    ),
    Bug(
        "labels of a photograph three pixels aside",
        "icnn/model/face_maps.py",
        "affine(1, target=(x, y))",
        "affine(1, target=(x + 3, y))",
        "test_parser.py::test_a_face_is_parsed_where_it_is_said_to_be",
    ),
    Bug(
        "crops from reduced copies half a pixel aside",
        "icnn/data/geometry.py",
        "compose(affine(1 / factor, -0.5, -0.5), matrix)",
        "compose(affine(1 / factor), matrix)",
        "test_pyramid.py::test_a_crop_shows_the_same_at_any_scale",
    ),
    Bug(
        "a face is turned the other way",
        "icnn/data/face_box.py",
        "np.array([[cosine, sine], [-sine, cosine]])",
        "np.array([[cosine, -sine], [sine, cosine]])",
        "test_parser.py::test_a_turned_face_is_parsed_upright",
    ),
    Bug(
        "labels between pixels of different labels are those of the upper left one",
        RESAMPLE,
        "cells[i, j] = own if same else MIXED",
        "cells[i, j] = own",
        "test_pyramid.py::test_drawn_labels_are_the_largest_of_resampled_probabilities",
    ),
    Bug(
        "results that differ in the case of a letter overwrite each other",
        "icnn/parse/files.py",
        "    return Path(name).stem.casefold()\n",
        "    return Path(name).stem\n",
        "test_parse.py::test_names_that_would_meet_keep_their_folders",
    ),
    Bug(
        "ONNX: even windows padded behind",
        "icnn/export/writer.py",
        "before, after = (layer.kernel_size - 1) // 2, layer.kernel_size // 2",
        "before, after = layer.kernel_size // 2, (layer.kernel_size - 1) // 2",
        "test_export.py::test_even_windows_are_padded_alike",
    ),
    Bug(
        "ONNX: parity of rows before that of columns",
        "icnn/export/writer.py",
        "odd[None, ::-1]",
        "odd[None]",
        "test_export.py::test_onnx_runtime_computes_what_the_plan_computes",
    ),
    Bug(
        "ONNX: a constant channel is divided by its rounding",
        "icnn/export/writer.py",
        'std = self.node("Where", [flat, one, std], "norm/divisor")',
        'std = self.node("Max", [std, std], "norm/divisor")',
        "test_export.py::test_onnx_runtime_computes_what_the_plan_computes",
    ),
    Bug(
        "a photograph for the server is decoded before its size is looked at",
        "icnn/data/images.py",
        "if most_pixels is not None and width * height > most_pixels:",
        "if False:",
        "test_serve.py::test_what_is_refused_is_refused_with_a_reason",
    ),
    Bug(
        "a seal that nobody looks at",
        "minicnn/checkpoint.py",
        "if written is not None and written != _digest(tensors, metadata):",
        "if False:",
        "test_checkpoint.py::test_a_seal_is_of_all_that_a_file_says",
    ),
    Bug(
        "centres not moved with a photograph that is resampled",
        "icnn/model/pipeline.py",
        "box.to_crop(points, CROP_SIZE, TYPICAL_LENGTH)",
        "points",
        "test_pipeline.py::test_a_face_of_another_size_is_parsed_at_the_usual_one",
    ),
    Bug(
        "blur that takes the outside for black",
        "icnn/data/loops.py",
        "and inside[u, v]",
        "",
        "test_appearance.py::test_blur_is_a_gaussian_of_its_width_that_outside_has_no_part_in",
    ),
    Bug(
        "Helen's second eye taken for the right one by its index",
        "icnn/convert/contours.py",
        "eyes = _left_to_right(points, EYES)",
        "eyes = [points[twin] for twin in EYES]",
        "test_convert.py",
    ),
    Bug(
        "names of runs and files reach the page as HTML",
        "icnn/report/render.py",
        "autoescape=True,",
        "autoescape=False,",
        "test_page.py::test_full_report_has_every_section_and_escapes",
    ),
    Bug(
        "a chart has colours that the dark page does not know",
        "icnn/report/charts.py",
        'f"var(--{name})"',
        "colour",
        "test_page.py::test_a_chart_has_its_title_legend_and_the_page_s_colours_and_is_the_same_again",
    ),
    Bug(
        "the time left counts networks that stopped early",
        "icnn/train/live.py",
        "for name in names[names.index(begun[-1]) :]:",
        "for name in names:",
        "test_watch.py",
    ),
    Bug(
        "crops that are shown were labelled by other weights than the validated ones",
        "icnn/train/trainer.py",
        "comm)\n            labels = self._labels_of_shown()",
        "comm)\n        labels = self._labels_of_shown()",
        "test_training.py::test_a_training_can_be_watched_and_its_crops_are_of_the_weights_that_would_be_kept",
    ),
    Bug(
        "a training counts as finished before its weights are written",
        "icnn/train/trainer.py",
        "    run.save_weights(name, trainer.plan, layout, side)\n    return trainer.finish()",
        "    done = trainer.finish()\n    run.save_weights(name, trainer.plan, layout, side)\n    return done",
        "test_training.py::test_a_kill_after_a_stopping_rule_applied_does_not_train_on",
    ),
    Bug(
        "shards' gradients count alike, whatever their weights",
        "minicnn/distributed.py",
        "plan.backward(float(total))",
        "plan.backward()",
        "test_distributed.py::test_a_batch_in_shards_gives_the_gradient_of_the_whole",
    ),
    Bug(
        "an input that another process makes is not drawn",
        "icnn/train/batches.py",
        "Appearance.random(rng, settings).skip(size, rng)",
        "Appearance.random(rng, settings)",
        "test_distributed.py::test_a_part_of_a_batch_is_what_it_is_in_the_whole",
    ),
    Bug(
        "a process that never joined leaves the others waiting",
        "minicnn/distributed.py",
        "        world = _mpi().COMM_WORLD",
        "        world = None",
        "test_distributed.py::test_mistakes_end_all_with_one_line",
    ),
    Bug(
        "two processes train in one folder",
        "icnn/train/run_folder.py",
        "lock.acquire()",
        "pass",
        "test_training.py::test_one_process_holds_a_run",
    ),
    Bug(
        "a resumed training draws its faces again",
        "icnn/train/splits.py",
        "stored = the_run.load_faces(counts)",
        "stored = {}",
        "test_splits.py::test_stored_faces_are_not_drawn_again",
    ),
    Bug(
        "damaged faces end a training",
        "icnn/train/run_folder.py",
        "tensors, metadata = load_tensors(self._drawn)\n        except CheckpointError:",
        "tensors, metadata = load_tensors(self._drawn)\n        except OSError:",
        "test_splits.py::test_damaged_faces_are_drawn_again_with_one_line",
    ),
    Bug(
        "Ctrl-C reaches the processes that draw, which complain",
        "icnn/synthetic/processes.py",
        "{signal.SIGINT, signal.SIGTERM}",
        "set()",
        "test_drawing.py::test_a_signal_while_drawing_ends_all_with_one_line",
    ),
    Bug(
        "the first who has decoded puts the warning filters back",
        "icnn/data/images.py",
        "            if not _Quiet.users:\n                _Quiet.back.close()",
        "            if True:\n                _Quiet.back.close()",
        "test_photograph.py::test_many_decode_at_a_time_and_the_last_restores_the_filters",
    ),
    Bug(
        "GPU: a batch is computed before it has arrived",
        GPU_DEVICE,
        "        _STREAM.wait_event(slot.sent)\n",
        "",
        "hostcuda/test_backend.py::test_training_equals_the_reference",
    ),
    Bug(
        "GPU: pinned memory is written while it travels",
        GPU_DEVICE,
        "        slot.sent.synchronize()  # the pinned memory is free again\n",
        "",
        "hostcuda/test_backend.py::test_training_equals_the_reference",
    ),
    Bug(
        "GPU: a batch arrives where the last one is still being read",
        GPU_DEVICE,
        "        _COPIES.wait_event(slot.taken)  # and so is the device's\n",
        "",
        "hostcuda/test_backend.py::test_training_equals_the_reference",
    ),
    Bug(
        "GPU: a batch arrives where another plan's kernels still write",
        GPU_DEVICE,
        "        self.taken.record(_STREAM)\n\n",
        "",
        "hostcuda/test_backend.py::test_a_batch_does_not_arrive_where_older_kernels_still_write",
    ),
    Bug(
        "GPU: half a step's graph is kept",
        GPU_DEVICE,
        "                captured = _STREAM.end_capture()\n",
        "                graph = captured = _STREAM.end_capture()\n",
        "hostcuda/test_backend.py::test_a_step_that_is_interrupted_while_it_is_captured_leaves_no_graph",
    ),
    Bug(
        "GPU: sums of the weights' gradient race",
        "minicnn/kernels/cuda/conv_weights.cu",
        "    shares[threadIdx.x] = total;\n    __syncthreads();\n",
        "    shares[threadIdx.x] = total;\n",
        "hostcuda/test_cases.py::test_kernel",
    ),
    Bug(
        "GPU: the images of a slot are taken for contiguous",
        GPU,
        "np.int64(array.strides[0] // array.itemsize)",
        "np.int64(array.size // max(1, array.shape[0]))",
        "hostcuda/test_cases.py::test_kernel",
    ),
    Bug(
        "exercise: a function that changes its argument passes",
        "icnn/exercise/task.py",
        "if not _same(_flat(before), _flat(after)):",
        "if False:",
        "test_exercise.py::test_a_file_that_cannot_be_run_to_a_result_gets_one_line_and_exit_code_2[changed input]",
    ),
    Bug(
        "exercise: a mistake is named after one case that looks like it",
        "icnn/exercise/task.py",
        "if all(len(r) > k and",
        "if any(len(r) > k and",
        "test_exercise.py::test_another_mistake_has_no_hint",
    ),
    Bug(
        "finder: a peak's place in its tile is taken for its place in the level",
        "icnn/parse/finder.py",
        "STRIDE + region.left - region.column",
        "STRIDE + region.left",
        "test_finder.py::test_a_face_may_fill_the_photograph_or_be_small_in_it",
    ),
    Bug(
        "finder: rolls are averaged as numbers",
        "icnn/parse/finder.py",
        "turned = np.angle(np.exp(1j * np.radians(roll)) @ weights, deg=True)",
        "turned = roll @ weights",
        "test_finder.py::test_proposals_of_one_face_are_merged_and_others_stay",
    ),
    Bug(
        "finder: regions do not overlap",
        "icnn/parse/finder.py",
        "math.ceil((side - _OVERLAP) / (_TILE - _OVERLAP))",
        "math.ceil(side / _TILE)",
        "test_finder.py::test_regions_cover_each_level_and_do_not_overlap_in_their_tiles",
    ),
    Bug(
        "finder's scenes: a mirrored face keeps its roll",
        "icnn/train/scenes.py",
        "(values, -bins, labels, weights)",
        "(values, bins, labels, weights)",
        "test_scenes.py::test_turning_a_scene_turns_its_labels",
    ),
    Bug(
        "finder's scenes: a hidden face is labelled",
        "icnn/train/scenes.py",
        "        if visible < _HIDDEN:\n",
        "        if visible < 0:\n",
        "test_scenes.py::test_cells_in_the_middle_of_a_visible_face_of_the_right_size_are_labelled",
    ),
    Bug(
        "finder's training: a resumed one draws other scenes",
        "icnn/train/finder.py",
        "newest = _POOL + _NEW * step",
        "newest = _POOL + _NEW * (step - first)",
        "test_train_finder.py::test_a_stopped_training_goes_on_to_the_same_bits",
    ),
    Bug(
        "GPU: a tile beyond the last image is read",
        "minicnn/kernels/cuda/conv.cu",
        "const bool inside = image < block.images && i >= 0",
        "const bool inside = i >= 0",
        "hostcuda/test_cases.py::test_kernel",
    ),
]


def found(bug: Bug, source: str) -> list[tuple[int, int]]:
    """Where the right text begins and ends; spaces, line breaks and comments between its words do not matter."""
    comment = r"(?<=\s)# [^\n]*" if bug.file.endswith(".py") else r"// [^\n]*"
    words = re.findall(r"\w+|[^\w\s]", re.sub(comment, "", bug.right))
    between = rf"(?:\s|{comment})*"
    return [match.span() for match in re.finditer(between.join(map(re.escape, words)), source)]


def planted(bug: Bug, source: str) -> str:
    """The source with the wrong text in the place of the right one, which stands there once."""
    ((start, end),) = found(bug, source)
    return source[:start] + bug.wrong.strip() + source[end:]


def named(test: str, tree: Path) -> list[str]:
    """A test as pytest names it. An entry names the file alone: no two test files have one name."""
    file, colons, function = test.partition("::")
    return [f"{path.relative_to(tree)}{colons}{function}" for path in (tree / "tests").rglob(Path(file).name)]


def check(bug: Bug, tree: Path) -> str:
    """Plant one bug in the copied tree, run its test, undo it; "" if the test caught it, else what happened."""
    path = tree / bug.file
    source = path.read_text()
    places = found(bug, source)
    if len(places) != 1:
        return f"stale: its text stands {len(places)} times in {bug.file}"
    path.write_text(planted(bug, source))
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *named(bug.test, tree)]
        # compiled kernels, which are found by their sources, serve all trees
        environment = {"NUMBA_CACHE_DIR": str(tree.parent / "cache"), **os.environ, "PYTHONPATH": str(tree)}
        result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=600)
    finally:
        path.write_text(source)
    if result.returncode == 1 and " failed" in result.stdout:
        return ""
    return f"not caught: pytest exited with {result.returncode}: {result.stdout.strip().splitlines()[-1:]}"


def copy_tree(folder: str) -> Path:
    """The sources in a new folder within `folder`."""
    tree = Path(tempfile.mkdtemp(dir=folder))
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    return tree


def main() -> int:
    """Run the command; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python tests/planted_bugs.py", description=__doc__.partition(":")[0])
    parser.add_argument("numbers", type=int, nargs="*", metavar="NUMBER", help=f"from 1 to {len(BUGS)} (default: all)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="default: as many as cores")
    options = parser.parse_args()
    bugs = dict(enumerate(BUGS, 1))
    if unknown := set(options.numbers) - set(bugs):
        parser.error(f"expected numbers from 1 to {len(BUGS)}, got {', '.join(map(str, sorted(unknown)))}")
    bugs = {number: bugs[number] for number in options.numbers or bugs}
    missed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        trees = Queue()
        for _ in range(options.jobs):
            trees.put(copy_tree(folder))

        def check_in_a_tree(bug: Bug) -> str:
            tree = trees.get()
            try:
                return check(bug, tree)
            finally:
                trees.put(tree)

        for (number, bug), problem in zip(bugs.items(), pool.map(check_in_a_tree, bugs.values()), strict=True):
            missed += bool(problem)
            print(f"{number:2} {problem or 'caught'}: {bug.what} ({bug.test})", flush=True)
    print(f"{len(bugs) - missed} of {len(bugs)} planted bugs caught")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
