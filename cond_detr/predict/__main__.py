"""``cond-detr predict``: finds objects in images and videos; writes pictures with their boxes, and JSON files."""

import argparse
import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cond_detr import progress
from cond_detr.cli import command_parser, fail, overlap, positive, run, score
from cond_detr.data.images import InputSize
from cond_detr.errors import InputError, tell
from cond_detr.files import make_folder, replacing, write_json
from cond_detr.models.model import Model
from cond_detr.options import add_running
from cond_detr.pictures import write_picture
from cond_detr.predict.detect import detect, detector_of
from cond_detr.predict.detections import MOST_MEASURED, Detections
from cond_detr.predict.output import COCO_RESULTS, PREDICTIONS, Output
from cond_detr.predict.results import detections_dict, frame_line, ids_of
from cond_detr.predict.search import Detect, Picture, Search, searched
from cond_detr.predict.sources import Source, find_sources, name_of, readable
from cond_detr.predict.tiles import OVERLAP, Tiling
from cond_detr.predict.video import Video, is_camera, is_video
from cond_detr.predict.video_writer import VideoWriter
from cond_detr.weights.options import add_checkpoint, add_precision, opened


def write_coco(path: Path, found: Sequence[tuple[int | str, Detections]]) -> None:
    """Writes detections in COCO's result format, an image at a time: there may be many.

    Args:
        path: the file.
        found: the id of each image, and its detections.
    """
    results = itertools.chain.from_iterable(each.to_coco(image_id) for image_id, each in found)
    with replacing(path) as file:
        file.write(b"[")
        for number, result in enumerate(results):
            file.write(b",\n" * bool(number) + json.dumps(result).encode())
        file.write(b"]\n")


def parser() -> argparse.ArgumentParser:
    """Builds the argument parser of ``cond-detr predict``."""
    p = command_parser(
        "predict",
        __doc__,
        "--checkpoint runs/small/best.pt --output-dir out photo.jpg folder/ https://example.org/photo.jpg",
        "--checkpoint model.safetensors --output-dir out --threshold 0.5 --batch-size 4 'folder/*.jpg'",
        "--checkpoint runs/small/best.pt --output-dir out --classes person,car clip.mp4",
        "--checkpoint runs/small/best.pt --output-dir out --tile 640 --tile-overlap 0.3 --no-labels aerial.tif",
        "--checkpoint conditional-detr-r50 --output-dir out --annotations instances_val.json val/",
    )
    p.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="images, videos, folders of them, quoted patterns, https addresses of images, or a camera (/dev/video0)",
    )
    add_checkpoint(p)
    p.add_argument(
        "--output-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for the pictures, predictions.json, and coco_results.json, which has all detections of any score; "
        "of a video for an MP4 without sound, and a file of JSON lines with the detections of each frame",
    )
    p.add_argument(
        "--threshold",
        type=score,
        metavar="S",
        help="lowest score to show (default: the one at which F1 was highest in validation; 0.3 for weights of others)",
    )
    p.add_argument("--classes", metavar="NAME,...", help="show these alone (default: all)")
    add_pieces(p)
    p.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="annotation file with the images, whose ids coco_results.json takes (default: file names are ids there)",
    )
    p.add_argument("--no-labels", dest="labels", action="store_false", help="draw boxes without names and scores")
    add_running(p, ["device", "threads"])
    add_precision(p)
    return p


def add_pieces(p: argparse.ArgumentParser) -> None:
    """Adds the options for batches and tiles."""
    p.add_argument(
        "--batch-size",
        type=positive,
        default=1,
        metavar="N",
        help="consecutive images, frames or tiles of equal size per forward pass (default: 1)",
    )
    p.add_argument(
        "--tile",
        type=positive,
        metavar="PIXELS",
        help="search large images in tiles of this side as well as whole, for small objects (default: whole)",
    )
    p.add_argument(
        "--tile-overlap",
        type=overlap,
        metavar="F",
        help="overlap of tiles as a fraction of their side, at most 0.9; objects should fit into it (default: 0.2)",
    )


def tiling_of(side: int | None, overlap: float | None) -> Tiling | None:
    """How images are cut, as ``--tile`` and ``--tile-overlap`` say.

    Raises:
        InputError: if there is an overlap, but no tiles.
    """
    if side is None:
        if overlap is not None:
            raise InputError("--tile-overlap is of tiles; give --tile as well")
        return None
    return Tiling(side, OVERLAP if overlap is None else overlap)


def class_names(text: str | None, known: Sequence[str]) -> tuple[str, ...] | None:
    """The names of ``--classes``; a class may have a comma in its name."""
    if text is None:
        return None
    return (text,) if text in known else tuple(name.strip() for name in text.split(","))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``cond-detr predict``; see :func:`parser` for its arguments.

    Returns:
        The exit code: 0, or 2 if some images could not be used.

    Raises:
        InputError: if the checkpoint or the output folder cannot be used, or no image is found.
    """
    options = parser().parse_args(argv)
    model = opened(options)
    sources = find_sources(options.sources)
    tiling = tiling_of(options.tile, options.tile_overlap)
    threshold = model.threshold if options.threshold is None else options.threshold
    how = Search(threshold, class_names(options.classes, model.classes.names), options.batch_size, tiling)
    how.check(model.classes, model.stride)
    images, videos = [each for each in sources if not is_video(each)], [each for each in sources if is_video(each)]
    ids = ids_of(images, options.annotations)
    make_folder(options.output_dir)
    output = Output.of(options.output_dir, sources, labels=options.labels)
    if images:
        output.check_lists()
    failed = 0
    if images:
        failed += predict_images(model, images, how, output, ids)
    for video in videos:
        failed += predict_video(model, video, how, output)
    return 2 if failed else 0


def predict_images(
    model: Model, sources: Sequence[Source], how: Search, output: Output, ids: Mapping[Source, int | str]
) -> int:
    """Writes pictures, predictions.json and coco_results.json; returns how many images could not be used."""
    queries = model.config.model.num_queries
    results: list[dict[str, Any]] = []
    any_score: list[tuple[int | str, Detections]] = []
    failed = 0
    pictures = progress.bar(readable(sources, model.input_size), "predict", len(sources), unit="image")
    try:
        for each in searched(pictures, most_of(model), model.input_size, how, queries):
            if isinstance(each, InputError):
                fail(str(each))
                failed += 1
                continue
            (source, image), all_of_it = each
            cut = how.tiling is not None and len(how.tiling.places(image.size)) > 1
            found = how.kept(all_of_it if cut else all_of_it[:queries])
            (picture,) = output.paths(source, ".png")
            write_picture(picture, output.drawn(image, found), "predict")
            results.append(detections_dict(source, image.size, found, picture.name))
            any_score.append((ids[source], all_of_it[:MOST_MEASURED]))
    finally:  # whatever stops it does not undo what is done; without any of it, the earlier run's results stay
        if results:
            write_json(output.folder / PREDICTIONS, results)
            write_coco(output.folder / COCO_RESULTS, any_score)
    if not results:
        return failed
    count = sum(len(result["detections"]) for result in results)
    what = f"{count} objects of a score of {how.threshold:g} or more in {len(results)} images"
    tell(f"{what}; pictures and {PREDICTIONS} in {output.folder}")
    return failed


def most_of(model: Model) -> Detect:
    """Finds as many objects as there are queries, or as COCO's evaluation takes into account."""
    most = max(model.config.model.num_queries, MOST_MEASURED)
    return lambda images: detect(model, images, most)


def frames_of(video: Video, size: InputSize) -> Iterator[Picture | InputError]:
    """The frames of a video; then the error if it cannot be read to its end, or they are too narrow for the network."""
    try:
        for frame in video:
            size.check(frame.image.size, video.name)
            yield Picture(frame, frame.image)
    except InputError as error:
        yield error


def predict_video(model: Model, source: Source, how: Search, output: Output) -> int:
    """Writes a video with boxes, and a JSON line for each frame; returns 1 if it cannot be read to its end.

    Without any frame nothing is written, and what an earlier run has written stays.
    """
    try:
        with Video(source) as video:
            found = searched(frames_of(video, model.input_size), detector_of(model), model.input_size, how)
            first = next(found)
            if isinstance(first, InputError):
                raise first
            bar = progress.bar(itertools.chain([first], found), f"predict {name_of(source)}", video.count, unit="frame")
            picture, lines = output.paths(source, ".mp4", ".jsonl")
            frames, objects, stopped = write_film(bar, video, how, output, (picture, lines))
    except InputError as error:
        return fail(str(error)) // 2
    failed = fail(str(stopped)) // 2 if isinstance(stopped, InputError) else 0
    what = f"{objects} objects of a score of {how.threshold:g} or more in {frames} frames of {source}"
    tell(f"{what}; {picture} and {lines.name} beside it")
    # an interruption is the way to end a camera's film
    if stopped and not failed and not (is_camera(source) and isinstance(stopped, KeyboardInterrupt)):
        raise stopped
    return failed


def write_film(
    found: Iterable[tuple[Picture, Detections] | InputError],
    video: Video,
    how: Search,
    output: Output,
    paths: tuple[Path, Path],
) -> tuple[int, int, BaseException | None]:
    """Writes frames with boxes, and a JSON line for each.

    What stops it does not undo what is done, if that is a frame at least.

    Args:
        found: frames, with the objects in them of any score.
        video: whose they are.
        how: which objects are wanted.
        output: how they are drawn.
        paths: of the video and of the lines.

    Returns:
        The numbers of frames and of objects, and what has stopped it.
    """
    picture, lines = paths
    frames, objects = 0, 0
    with (
        replacing(picture) as film,
        replacing(lines) as text,
        VideoWriter(film, video.rate, video.name, video.pixel_aspect) as writer,
    ):
        try:
            for each in found:
                if isinstance(each, InputError):
                    raise each
                (frame, image), any_score = each
                kept = how.kept(any_score)
                writer.write(output.drawn(image, kept), frame.time, frame.duration)
                text.write(frame_line(picture.name, frame, image.size, kept))
                frames, objects = frames + 1, objects + len(kept)
            writer.complete()
        except (InputError, KeyboardInterrupt, SystemExit) as error:
            if not frames:
                raise
            with contextlib.suppress(InputError):  # the first one counts
                writer.complete()
            return frames, objects, error
    return frames, objects, None


if __name__ == "__main__":
    run(main)
