"""Videos in, videos and JSON lines out."""

import contextlib
import errno
import io
import json
import os
import re
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cond_detr import ConditionalDETR, InputError, cli, preset
from cond_detr.classes import Classes
from cond_detr.config import configure
from cond_detr.errors import say
from cond_detr.predict import __main__ as predict
from cond_detr.predict import video as videos
from cond_detr.predict.clock import Clock
from cond_detr.predict.video import Video, nearest
from cond_detr.predict.video_writer import COMMAND, MADE_BY, VideoWriter, is_made_here
from cond_detr.weights.checkpoint import Checkpoint

av = pytest.importorskip("av")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained model whose scores are above the threshold."""
    torch.manual_seed(0)
    small = configure(preset("shapes"), {"encoder_layers": 1, "decoder_layers": 1})
    model = ConditionalDETR.new(small, Classes(("a", "b, or c"), (1, 2)))
    with torch.no_grad():
        model.network.class_head.bias.zero_()
    Checkpoint(tmp_path / "model.pt", model.config, model.classes, model.network.state_dict()).save()
    return tmp_path / "model.pt"


def pictures(count: int, size: tuple[int, int] = (96, 64)) -> list[Image.Image]:
    """A bright square that moves over a dark ground, so that frames can be told apart."""
    found = []
    for i in range(count):
        pixels = np.full((size[1], size[0], 3), 20, dtype=np.uint8)
        left = i % (size[0] - 16)
        pixels[8:24, left : left + 16] = 230
        found.append(Image.fromarray(pixels))
    return found


def film(path: Path, images: list[Image.Image], times: list[Fraction] | None = None) -> Path:
    with path.open("wb") as file, VideoWriter(file, Fraction(25)) as writer:
        for i, image in enumerate(images):
            writer.write(image, times[i] if times else Fraction(i, 25))
    return path


def run_predict(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.run(predict.main, ["--device", "cpu", *map(str, arguments)])
    return int(stop.value.code or 0)


def read(path: Path) -> tuple[list[np.ndarray[Any, Any]], list[Fraction | None]]:
    with Video(path) as video:
        frames = list(video)
    assert [frame.number for frame in frames] == list(range(len(frames)))
    return [np.asarray(frame.image) for frame in frames], [frame.time for frame in frames]


def test_a_video_comes_out_frame_by_frame(checkpoint: Path, tmp_path: Path) -> None:
    source, out = film(tmp_path / "clip.mp4", pictures(200)), tmp_path / "out"
    arguments = ["--checkpoint", checkpoint, "--output-dir", out, "--threshold", 0.3, "--batch-size", 3]
    assert run_predict(*arguments, source) == 0
    lines = [json.loads(line) for line in (out / "clip.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(200))
    np.testing.assert_allclose([line["seconds"] for line in lines], np.arange(200) / 25, atol=1e-4)
    assert {(line["width"], line["height"]) for line in lines} == {(96, 64)}
    drawn, times = read(out / "clip.mp4")
    assert len(drawn) == 200
    np.testing.assert_allclose([float(time or 0) for time in times], np.arange(200) / 25, atol=1e-4)
    model = ConditionalDETR.from_checkpoint(checkpoint)
    frames, _ = read(source)
    for line, frame, found in zip(lines, frames, model.stream(source, 0.3), strict=True):
        (alone,) = model.predict([frame], threshold=0.3)
        assert alone.to_dicts() == found.to_dicts()
        for one, other in zip(line["detections"], alone.to_dicts(), strict=True):
            assert one["class"] == other["class"]
            np.testing.assert_allclose(one["box"], other["box"], atol=0.02)
        np.testing.assert_array_equal(np.asarray(found.image), frame)
    # enlarged, with the square where it was
    assert abs(int(drawn[7].mean()) - int(frames[7].mean())) < 60


def test_uneven_times_and_odd_sizes(tmp_path: Path) -> None:
    times = [Fraction(0), Fraction(1, 30), Fraction(1, 2), Fraction(51, 100), Fraction(3)]
    source = film(tmp_path / "odd.mp4", pictures(5, (65, 49)), times)
    frames, found = read(source)
    assert [frame.shape for frame in frames] == [(50, 66, 3)] * 5
    np.testing.assert_allclose([float(each or 0) for each in found], [float(each) for each in times], atol=1e-4)
    # times that do not rise are made to
    _, found = read(film(tmp_path / "same.mp4", pictures(4), [Fraction(1), Fraction(1), Fraction(0), Fraction(2)]))
    assert len(found) == 4
    assert found == sorted(set(found))  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("matrix", "wanted"),
    [
        ((0, 1, -1, 0), lambda lying: np.rot90(lying, -1)),  # a telephone that was held upright
        ((-1, 0, 0, -1), lambda lying: np.rot90(lying, 2)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, 1), lambda lying: lying[:, ::-1]),  # one that looks at whoever holds it
        ((1, 0, 0, -1), lambda lying: lying[::-1]),
        ((0, 1, 1, 0), lambda lying: lying.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda lying: lying[::-1, ::-1].transpose(1, 0, 2)),
        ((-0.99, 0.05, 0.05, 0.99), lambda lying: lying[:, ::-1]),  # and not quite straight
        ((0.7, 0.7, -0.7, 0.7), lambda lying: lying),  # by 45 degrees, which no picture can be
        ((0, 0, 0, 0), lambda lying: lying),
    ],
)
def test_frames_are_upright(matrix: tuple[float, ...], wanted: Any, tmp_path: Path) -> None:
    """MP4's matrix says where x and y go."""
    source = film(tmp_path / "a.mp4", pictures(3))
    content = bytearray(source.read_bytes())
    place = content.index(b"tkhd") + 4 + 4 + 36  # version 0
    a, b, c, d = (round(part * (1 << 16)) for part in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    (lying, _), (upright, _) = read(source), read(tmp_path / "turned.mp4")
    np.testing.assert_array_equal(upright[0], wanted(lying[0]))


@pytest.mark.parametrize("turned", [False, True])
def test_pixels_that_are_wider_than_high_stay_so(turned: bool, checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    with source.open("wb") as file, VideoWriter(file, Fraction(25), pixel_aspect=Fraction(2)) as writer:
        for image in pictures(3):
            writer.write(image, None)
    if turned:
        content = bytearray(source.read_bytes())
        place = content.index(b"tkhd") + 4 + 4 + 36
        content[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
        source.write_bytes(content)
    assert run_predict("--checkpoint", checkpoint, "--output-dir", tmp_path / "out", source) == 0
    with av.open(str(tmp_path / "out/a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width < stream.height) == turned
        assert stream.sample_aspect_ratio == (Fraction(1, 2) if turned else 2)


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_two_films_in_one_file(suffix: str, tmp_path: Path) -> None:
    """The clock of the second one begins at 0 again; libav takes that for the end of a clock of 26 hours."""
    late = encoded(tmp_path / f"a.{suffix}", [Fraction(100) + Fraction(i, 25) for i in range(30)], Fraction(1, 25))
    early = encoded(tmp_path / f"b.{suffix}", [Fraction(i, 25) for i in range(30)], Fraction(1, 25))
    late.write_bytes(late.read_bytes() + early.read_bytes())
    _, times = read(late)
    assert len(times) == 60
    steps = np.diff([float(time or 0) for time in times])
    np.testing.assert_allclose(steps, 0.04, atol=0.041)
    assert steps.min() >= 0


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "mpg"])
@pytest.mark.parametrize("others", ["sound before", "sound behind", "data"])
def test_a_film_with_other_streams(others: str, suffix: str, tmp_path: Path) -> None:
    """With frames that the decoder gives only when it is told of the end."""
    if others == "data" and suffix != "ts":
        pytest.skip("only TS has streams of anything")
    source = tmp_path / f"a.{suffix}"
    with av.open(str(source), "w") as container:
        sound: Any = container.add_stream("mp2", rate=48_000) if others == "sound before" else None
        stream = container.add_stream("mpeg4" if suffix in {"mp4", "avi"} else "mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        sound = container.add_stream("mp2", rate=48_000) if others == "sound behind" else sound
        data: Any = container.add_data_stream("klv") if others == "data" else None
        for i, image in enumerate(pictures(30)):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
            if sound:
                heard = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1920), np.int16), format="s16", layout="stereo")
                heard.sample_rate, heard.pts, heard.time_base = 48_000, 1920 * i, Fraction(1, 48_000)
                container.mux(sound.encode(heard))
            if data:
                packet = av.Packet(b"x" * 50)
                packet.stream, packet.time_base, packet.pts, packet.dts = data, Fraction(1, 25), i, i
                container.mux(packet)
        for each in filter(None, (stream, sound)):
            container.mux(each.encode())
    np.testing.assert_allclose([float(time or 0) for time in read(source)[1]], np.arange(30) / 25, atol=1e-4)


def test_turns_of_a_clock() -> None:
    """Of 33 bits: it comes to its end, perhaps in a pause, and begins at 0 where another film does."""
    second, end = 90_000, 2**33
    assert nearest(5, end - second) == end + 5
    assert nearest(end - second, end + 5) == end - second
    assert nearest(90 * second, end - second) == end + 90 * second
    assert nearest(1000 * second, end + 5 * second) == end + 1000 * second
    assert nearest(0, end + 5000 * second) == end
    assert nearest(0, 20 * 3600 * second) == 0
    assert nearest(20 * 3600 * second, 0) == 20 * 3600 * second


@pytest.mark.parametrize("hours", [5, 14, 20, 26])
def test_the_first_film_is_late(hours: int, tmp_path: Path) -> None:
    """Where the second one begins is behind the end of a clock of 26 hours, or else before the first one."""
    for name, start in (("a.ts", Fraction(3600 * hours)), ("b.ts", Fraction(0))):
        encoded(tmp_path / name, [start + Fraction(i, 25) for i in range(30)], Fraction(1, 90_000))
    (tmp_path / "a.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    times = [float(time or 0) for time in read(tmp_path / "a.ts")[1]]
    np.testing.assert_allclose(np.diff(times), 0.04, atol=0.041)
    assert len(times) == 60


def noise(path: Path, options: dict[str, str], *, sound: bool) -> None:
    """A film of 40 frames of many bytes, and as much sound."""
    values = np.random.default_rng(0)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 96, 64, "yuv420p", 8_000_000
        heard = container.add_stream("aac", rate=44100, layout="mono") if sound else None
        for i in range(40):
            pixels = values.integers(0, 255, (64, 96, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            if heard:
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1764), np.float32), format="fltp", layout="mono")
                silence.sample_rate, silence.pts = 44100, 1764 * i
                container.mux(heard.encode(silence))
        container.mux(stream.encode())


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("programme", ["0x1000", "0x1200"])
def test_another_film_behind_it(
    programme: str, sound: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its pictures are a stream of their own, which libav knows from the beginning or comes upon."""
    for name, options in (("a.ts", {}), ("b.ts", {"mpegts_start_pid": "0x200", "mpegts_pmt_start_pid": programme})):
        noise(tmp_path / name, options, sound=sound)
    assert len(read(tmp_path / "a.ts")[0]) == 40
    assert capsys.readouterr().err == ""
    (tmp_path / "a.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    assert len(read(tmp_path / "a.ts")[0]) == 40
    assert "warning: the last 50% of video" in capsys.readouterr().err


@pytest.mark.parametrize("zeros", [1 << 16, 1 << 19, 3 << 20])
def test_what_a_camera_has_reserved_and_not_needed(
    zeros: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All frames but the last, which nothing pushes out."""
    noise(tmp_path / "a.ts", {}, sound=True)
    whole = (tmp_path / "a.ts").read_bytes()
    (tmp_path / "a.ts").write_bytes(whole + bytes(zeros))
    assert len(read(tmp_path / "a.ts")[0]) in (39, 40)
    assert "are empty: it was cut off, or space was reserved" in capsys.readouterr().err
    if zeros > 1 << 16:  # libav finds the next packet behind fewer
        (tmp_path / "a.ts").write_bytes(whole + bytes(zeros) + whole[:-188])
        with pytest.raises(InputError, match="cannot be read after frame"):
            read(tmp_path / "a.ts")


def test_a_matroska_film_with_sound_that_was_cut_off(tmp_path: Path) -> None:
    noise(tmp_path / "a.mkv", {}, sound=True)
    content = (tmp_path / "a.mkv").read_bytes()
    assert len(read(tmp_path / "a.mkv")[0]) == 40
    (tmp_path / "a.mkv").write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(InputError, match=r"damaged or was cut off: it ends after .* of 1\.6 seconds"):
        read(tmp_path / "a.mkv")


@pytest.mark.parametrize("before", range(1, 8))
def test_a_clock_that_comes_to_its_end(before: int, tmp_path: Path) -> None:
    """That of MPEG does so after 26 hours, perhaps among frames that lean on each other."""
    start = Fraction(2**33, 90_000) - Fraction(before, 25)
    source = encoded(tmp_path / "a.ts", [start + Fraction(i, 25) for i in range(20)], Fraction(1, 90_000))
    found = [float(time or 0) for time in read(source)[1]]
    np.testing.assert_allclose(found, np.arange(20) / 25, atol=1e-4)


@pytest.mark.parametrize("share", [0.6, 0.8])
def test_an_avi_film_without_its_end(share: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(100):
            pixels = noise.integers(0, 255, (64, 96, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    content = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(content[: int(share * len(content))])
    # by the frames that are missing, or by the one that is cut, as the decoder's threads have it
    said = r"is damaged or was cut off: \d+ of \d+ frames could be read|cannot be read after frame \d+"
    with pytest.raises(InputError, match=said):
        read(tmp_path / "a.avi")


def test_time_that_is_covered_twice_counts_once() -> None:
    clock = Clock(Fraction(1, 25))
    for time in (0, 1, 2, 12, 3, 4, 5, 0, 1):
        clock.shows(Fraction(time), Fraction(1))
    assert clock.length == 13
    clock.shows(Fraction(100))
    assert clock.length == 100
    clock = Clock(Fraction(1, 25))
    for time in (100, 101, 0, 1):
        clock.shows(Fraction(time), Fraction(1))
    assert clock.length == 4


def test_frames_that_an_avi_film_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It counts them nevertheless."""
    times = [Fraction(i, 25) for i in range(60) if i % 3 < 2]
    source = encoded(tmp_path / "a.avi", times, Fraction(1, 25), ahead=0)
    found = read(source)[1]
    np.testing.assert_allclose([float(each or 0) for each in found], [float(each) for each in times])
    assert "a.avi pauses, or is damaged: 40 of 59 frames could be read" in capsys.readouterr().err


def test_a_film_of_one_frame(tmp_path: Path) -> None:
    assert len(read(encoded(tmp_path / "a.ts", [Fraction(0)]))[0]) == 1


def test_what_is_damaged_or_no_video(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 255, (64, 96, 3), dtype=np.uint8)) for _ in range(60)]
    whole = film(tmp_path / "whole.mp4", images).read_bytes()
    middle = len(whole) // 3
    (tmp_path / "cut.mp4").write_bytes(whole[:middle])
    (tmp_path / "torn.mp4").write_bytes(whole[:middle] + bytes(100_000) + whole[middle + 100_000 :])
    (tmp_path / "text.mp4").write_text("not a video")
    # a playlist leads to other files
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:10,\n{tmp_path}/whole.mp4\n#EXT-X-ENDLIST\n")
    for name in ("cut", "text", "list", "missing"):
        code = run_predict("--checkpoint", checkpoint, "--output-dir", tmp_path / name, tmp_path / f"{name}.mp4")
        (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error")]
        assert code == 2
        assert f"video {tmp_path}/{name}.mp4" in line
        assert list((tmp_path / name).iterdir()) == []
    code = run_predict("--checkpoint", checkpoint, "--output-dir", tmp_path / "torn", tmp_path / "torn.mp4")
    output = capsys.readouterr()
    assert code in {0, 2}  # libav goes on where it can
    assert (tmp_path / "torn/torn.mp4").exists() == (tmp_path / "torn/torn.jsonl").exists()
    assert "Traceback" not in output.err
    with pytest.raises(InputError, match=r"missing\.mp4 does not exist"):
        list(ConditionalDETR.from_checkpoint(checkpoint).stream(tmp_path / "missing.mp4"))


def test_a_video_that_ends_early_says_so(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its header says how long it is; libav takes the end of the file for the end of the film."""
    whole = film(tmp_path / "whole.mp4", pictures(60))
    with av.open(str(whole)) as source, av.open(str(tmp_path / "whole.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    assert len(read(tmp_path / "whole.mkv")[0]) == 60
    out = tmp_path / "out"
    assert run_predict("--checkpoint", checkpoint, "--output-dir", out, "--batch-size", 4, tmp_path / "cut.mkv") == 2
    said = re.search(
        r"cut.mkv is damaged or was cut off: it ends after ([\d.]+) of 2.4 seconds", capsys.readouterr().err
    )
    assert said is not None
    frames = (out / "cut.jsonl").read_text().splitlines()
    assert len(frames) / 25 == pytest.approx(float(said[1]), abs=0.2)  # what could be read is kept
    assert 10 < len(frames) < 50


@pytest.mark.parametrize("name", ["hole.mkv", "hole.ts", "hole.mpg"])
def test_a_hole_in_the_middle(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Behind which libav goes on."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    codec = "mpeg2video" if name.endswith("mpg") else "mpeg4"
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(100):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, 3 * i, 1), format="rgb24")))
        container.mux(stream.encode())
    assert len(read(tmp_path / name)[0]) == 100
    content = bytearray((tmp_path / name).read_bytes())
    begin, end = len(content) * 2 // 5, len(content) * 3 // 5
    content[begin:end] = bytes(end - begin)
    (tmp_path / name).write_bytes(content)
    if name == "hole.mkv":  # such files may pause as well
        read(tmp_path / name)
        warned = re.search(r"warning: .*hole.mkv pauses, or is damaged: (\d+) of about 100", capsys.readouterr().err)
        assert warned is not None
        assert int(warned[1]) < 90
        return
    words = "is damaged or was cut off: |pauses, or is damaged: |cannot be read after frame"
    with pytest.raises(InputError, match=f"{name} ({words})"):
        read(tmp_path / name)


def test_a_film_that_pauses(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever records a screen leaves out what is as before."""
    with av.open(str(tmp_path / "screen.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in (*range(20), *range(20, 80, 4)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert run_predict("--checkpoint", checkpoint, "--output-dir", tmp_path / "out", tmp_path / "screen.mkv") == 0
    assert len((tmp_path / "out/screen.jsonl").read_text().splitlines()) == 35
    assert "warning: video" in capsys.readouterr().err


def test_a_video_too_narrow_to_be_seen(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = film(tmp_path / "narrow.mp4", pictures(3, (640, 16)))
    assert run_predict("--checkpoint", checkpoint, "--output-dir", tmp_path / "out", source) == 2
    assert "narrow.mp4 of 640x16 pixels is too narrow" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_frames(checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import resource, sys; from cond_detr.predict import __main__ as predict; predict.main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for count in (40, 160):
        source = film(tmp_path / f"{count}.mp4", pictures(count))
        command = [sys.executable, "-c", code, "--checkpoint", checkpoint, "--threshold", "0.9", "--device", "cpu"]
        command += ["--output-dir", tmp_path / "out", source]
        done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)  # MiB
    assert peaks[1] - peaks[0] < 15


def test_videos_and_images_together(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    film(folder / "a.mp4", pictures(3))
    pictures(1)[0].save(folder / "a.png")
    assert run_predict("--checkpoint", checkpoint, "--output-dir", folder, folder) == 0
    names = ["a-2.jsonl", "a-2.mp4", "a-2.png", "a.mp4", "a.png", "coco_results.json", "predictions.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert len(read(folder / "a.mp4")[0]) == len(read(folder / "a-2.mp4")[0]) == 3


def test_films_of_others_stay(checkpoint: Path, tmp_path: Path) -> None:
    """However often there are new results beside them; a pipe there is left alone."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.mp4").write_bytes(b"precious")
    os.mkfifo(out / "b.jsonl")
    film(tmp_path / "a.mp4", pictures(2))
    for _ in range(2):
        assert run_predict("--checkpoint", checkpoint, "--output-dir", out, tmp_path / "a.mp4") == 0
        assert (out / "a.mp4").read_bytes() == b"precious"
        assert sorted(path.name for path in out.iterdir()) == ["a-2.jsonl", "a-2.mp4", "a.mp4", "b.jsonl"]


def test_a_film_that_somebody_has_put_in_place_of_ours(checkpoint: Path, tmp_path: Path) -> None:
    source = film(tmp_path / "a.mp4", pictures(2))
    for _ in range(2):
        assert run_predict("--checkpoint", checkpoint, "--output-dir", tmp_path / "out", source) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jsonl", "a.mp4"]
    with av.open(str(tmp_path / "out/a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        container.mux(stream.encode(av.VideoFrame.from_image(pictures(1)[0])))
        container.mux(stream.encode())
    precious = (tmp_path / "out/a.mp4").read_bytes()
    assert run_predict("--checkpoint", checkpoint, "--output-dir", tmp_path / "out", source) == 0
    assert (tmp_path / "out/a.mp4").read_bytes() == precious
    assert (tmp_path / "out/a-2.mp4").exists()


@pytest.mark.parametrize(
    "of_another",
    [
        b'{"picture": "a\\x.mp4", "frame": 0, "seconds": 0.0, "width": 96, "height": 64, "detections": []}',
        b'{"picture": "\xff.mp4", "frame": 0, "seconds": 0.0, "width": 96, "height": 64, "detections": []}',
        b'{"picture": "a.mp4", "frame": 0, "label": "by hand"}',
        b'{"picture": "a.png", "frame": 0, "seconds": 0.0, "width": 96, "height": 64, "detections": []}',
        b'{"picture": "b.mp4", "frame": 0, "seconds": 0.0, "width": 96, "height": 64, "detections": []}',
    ],
)
def test_lines_of_others_stay(of_another: bytes, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.jsonl").write_bytes(of_another)
    source = film(tmp_path / "a.mp4", pictures(2))
    assert run_predict("--checkpoint", checkpoint, "--output-dir", out, source) == 0
    assert (out / "a.jsonl").read_bytes() == of_another


@pytest.mark.parametrize("stopped", ["damaged", "interrupted"])
def test_without_a_frame_the_earlier_film_stays(
    stopped: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = film(tmp_path / "a.mp4", pictures(3)), tmp_path / "out"
    arguments = ["--device", "cpu", "--checkpoint", str(checkpoint), "--output-dir", str(out), str(source)]
    assert predict.main(arguments) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fails(*_: object) -> None:
        raise InputError("damaged") if stopped == "damaged" else KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cond_detr.predict.video.turn_of", fails)
        with pytest.raises(KeyboardInterrupt) if stopped == "interrupted" else contextlib.nullcontext():
            assert predict.main(arguments) == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.setattr(VideoWriter, "write", fails)  # and while the first is drawn
    with pytest.raises(KeyboardInterrupt) if stopped == "interrupted" else contextlib.nullcontext():
        assert predict.main(arguments) == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_what_is_done_is_kept(
    signal: type[BaseException], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SystemExit is what SIGTERM raises."""
    source, write = film(tmp_path / "a.mp4", pictures(5)), VideoWriter.write

    def stopping(self: VideoWriter, image: Image.Image, time: Fraction | None, duration: Fraction | None) -> None:
        if time and time > 0.05:
            raise signal
        write(self, image, time, duration)

    monkeypatch.setattr(VideoWriter, "write", stopping)
    arguments = ["--device", "cpu", "--checkpoint", checkpoint, "--output-dir", tmp_path / "out", source]
    with pytest.raises(signal):
        predict.main([*map(str, arguments)])
    assert len(read(tmp_path / "out/a.mp4")[0]) == len((tmp_path / "out/a.jsonl").read_text().splitlines()) > 0


def test_without_pyav(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def need(extra: str, *packages: str) -> None:
        raise InputError(f"this needs {packages[0]}: pip install 'cond-detr[{extra}]'")

    monkeypatch.setattr(videos, "need", need)
    with pytest.raises(InputError, match=r"this needs av: pip install 'cond-detr\[video\]'"):
        next(ConditionalDETR.from_checkpoint(checkpoint).stream("a.mp4"))


def test_times_begin_with_the_first_frame_and_go_on() -> None:
    """Films of broadcasts begin late, and in two films in one file the clock begins again."""
    clock = Clock(Fraction(1, 25))
    own = [Fraction(50_000) + Fraction(i, 25) for i in range(3)] * 2
    assert [clock.shows(time) for time in own] == [Fraction(i, 25) for i in range(6)]
    assert clock.shows(None) == Fraction(6, 25)  # the film does not say
    assert clock.usual_step == Fraction(1, 25)


def test_times_that_are_rounded_are_none_that_begin_again() -> None:
    """Matroska has milliseconds, of which there may be two frames in one."""
    clock = Clock(Fraction(1, 25))
    own = [Fraction(i, 1000) for i in (0, 0, 1, 2, 2, 3)]
    assert [clock.shows(time) for time in own] == own
    clock = Clock(Fraction(1, 25))
    assert [clock.shows(time) for time in (None, None, Fraction(7))] == [None, None, Fraction(2, 25)]


def encoded(
    path: Path, times: list[Fraction], unit: Fraction = Fraction(1, 1000), rate: int = 25, ahead: int = 3
) -> Path:
    """A film as other programs write it, with frames that lean on later ones, ``ahead`` at most."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base, stream.codec_context.max_b_frames = unit, ahead
        for image, time in zip(pictures(len(times)), times, strict=True):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = round(time / unit), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_file_that_has_times_of_decoding_alone(tmp_path: Path) -> None:
    source = encoded(tmp_path / "a.avi", [Fraction(i, 25) for i in range(50)], Fraction(1, 25))
    assert read(source)[1] == [Fraction(i, 25) for i in range(50)]


def test_the_last_frame_is_seen_as_long_as_in_the_source(checkpoint: Path, tmp_path: Path) -> None:
    """Not as long as frames are on average, of which one may be seen for an hour."""
    source = encoded(tmp_path / "a.mkv", [Fraction(0), Fraction(1, 25), Fraction(3600)])
    assert run_predict("--checkpoint", checkpoint, "--output-dir", tmp_path / "out", source) == 0
    with (tmp_path / "long.mp4").open("wb") as file, VideoWriter(file, Fraction(1, 86400)) as writer:
        writer.write(pictures(1)[0], Fraction(0), Fraction(25_000))  # more than MP4 can have
    assert len(read(tmp_path / "long.mp4")[0]) == 1
    with av.open(str(tmp_path / "out/a.mp4")) as container:
        stream = container.streams.video[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(3600.04, abs=1e-3)


def test_a_telephones_film_that_was_shortened(tmp_path: Path) -> None:
    """Without being encoded again: the file counts frames that it does not show. Its rate is not quite constant."""
    shakes = np.random.default_rng(1).integers(-4, 4, 120, endpoint=True)
    times = [Fraction(i, 30) + (Fraction(int(shakes[i]), 1000) if i else 0) for i in range(120)]
    source = encoded(tmp_path / "a.mp4", times, Fraction(1, 90000), rate=30)
    content = bytearray(source.read_bytes())
    edits, media = content.index(b"elst"), content.index(b"mdhd")
    (unit,) = struct.unpack(">I", content[media + 16 : media + 20])
    content[edits + 12 : edits + 20] = struct.pack(">Ii", 3100, int(0.9 * unit))
    source.write_bytes(content)
    assert 90 <= len(read(source)[0]) <= 95


@pytest.mark.parametrize("kind", ["mkv", "mp4"])  # in MP4 the frame before it is as long as the pause
def test_what_cannot_be_written_is_said(
    kind: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is before it is kept, and what comes after it in the same command is looked at."""
    pause = tmp_path / f"a.{kind}"
    encoded(pause, [Fraction(i) for i in (0, 1, 2, 60000, 60001)], ahead=0)
    other = film(tmp_path / "b.mp4", pictures(2))
    assert run_predict("--checkpoint", checkpoint, "--output-dir", tmp_path / "out", pause, other) == 2
    words = "cannot be written with boxes: MP4 cannot have a pause of 16.7 hours"
    assert f"error: video {pause} {words}" in capsys.readouterr().err
    assert read(tmp_path / "out/a.mp4")[1] == [0, 1, 2]
    assert len(read(tmp_path / "out/b.mp4")[0]) == 2
    writer = VideoWriter(io.BytesIO(), Fraction(25), "x")
    with pytest.raises(InputError, match="x cannot be written with boxes: libav says '"), writer:
        writer.write(Image.new("RGB", (20_000, 16)), None)  # more than H.264 can have


def test_a_late_film(checkpoint: Path, tmp_path: Path) -> None:
    source = film(tmp_path / "late.mp4", pictures(5), [Fraction(40) + Fraction(i, 25) for i in range(5)])
    assert run_predict("--checkpoint", checkpoint, "--output-dir", tmp_path / "out", source) == 0
    lines = [json.loads(line) for line in (tmp_path / "out/late.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([line["seconds"] for line in lines], np.arange(5) / 25, atol=1e-4)
    assert read(tmp_path / "out/late.mp4")[1] == [Fraction(i, 25) for i in range(5)]


def test_frames_that_become_larger_are_scaled(tmp_path: Path) -> None:
    large = np.zeros((128, 192, 3), np.uint8)
    large[64:] = 255  # its lower half
    images = [*pictures(2), *[Image.fromarray(large)] * 8]
    frames, _ = read(film(tmp_path / "x.mp4", images))
    assert frames[-1].shape == (64, 96, 3)
    assert frames[-1][:24].mean() < 30
    assert frames[-1][40:].mean() > 225


def test_a_warning_that_cannot_be_printed_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    closed = io.StringIO()
    closed.close()
    for stream in (Full(), closed, None):
        monkeypatch.setattr("sys.stderr", stream)
        say("warning: anything")
    assert capsys.readouterr().out == ""


def test_a_predicted_film_with_sound_is_somebodys(tmp_path: Path) -> None:
    """Whoever puts the sound back keeps what the film says of its maker."""
    for sound in (False, True):
        with av.open(str(tmp_path / "a.mp4"), "w") as container:
            container.metadata[MADE_BY] = COMMAND
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            heard: Any = container.add_stream("mp2", rate=48_000) if sound else None
            for image in pictures(3):
                container.mux(stream.encode(av.VideoFrame.from_image(image)))
            if heard:
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.int16), format="s16", layout="stereo")
                silence.sample_rate = 48_000
                container.mux(heard.encode(silence))
            for each in filter(None, (stream, heard)):
                container.mux(each.encode())
        assert is_made_here(tmp_path / "a.mp4") != sound
