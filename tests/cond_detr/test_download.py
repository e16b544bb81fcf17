"""Downloads of weights: one file that is right, or none, whatever happens on the way."""

import contextlib
import hashlib
import http.server
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cond_detr import ConditionalDETR, InputError
from cond_detr.connection import Paced
from cond_detr.download import as_sent
from cond_detr.weights import cache, published
from cond_detr.weights.published import PUBLISHED, Published, is_on_the_hub
from cond_detr.weights.reading import open_source

MODEL = ConditionalDETR.from_preset("shapes", 2, decoder_layers=1, num_queries=5)
TENSORS = {name: tensor.contiguous() for name, tensor in MODEL.network.state_dict().items()}
DATA = safetensors.torch.save(TENSORS, {"format": "pt"})

# How answers begin, and what then comes for ever
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "goes on": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "trailers": (CHUNKED + b"5\r\nhello\r\n0\r\n", b"X-A: b\r\n" * 100),
    "extensions": (CHUNKED, b"1;" + b"x" * 2000 + b"\r\na\r\n"),
}


class Server(http.server.ThreadingHTTPServer):
    """Serves one file, and hangs up after as many bytes as it is told to.

    Attributes:
        data: the file.
        tag: its version; None: it has no name, and there are no parts of files.
        cuts: bytes after which each of the next answers ends.
        asked: the ranges that were asked for.
        believing: whether it sends the rest of a file whatever version is asked for.
        most: bytes of a rest that it sends at once.
        odd: what it does wrong: "slow file", "slow headers", "moved for ever",
            "all of it" where it announces the rest, "fast, then slow", "a length without an end",
            "many words", "a part", or one of ``ENDLESS``.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = DATA
        self.tag: str | None = '"1"'
        self.cuts: list[int] = []
        self.asked: list[str | None] = []
        self.believing, self.most, self.odd = False, 1 << 30, ""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if server.odd not in {"", "slow file", "all of it"}:
            self.answer_oddly(server)
            return
        begin = 0
        if wanted and server.tag and (server.believing or self.headers.get("If-Range") == server.tag):
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
        if begin >= len(server.data):
            self.send_error(416)
            return
        rest = server.data[begin:][: server.most if begin else None]
        self.send_response(206 if begin and server.odd != "all of it" else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{begin + len(rest) - 1}/{len(server.data)}")
        if server.tag:
            self.send_header("ETag", server.tag)
            self.send_header("Accept-Ranges", "bytes")
        if server.odd == "all of it":
            rest = server.data
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if server.odd == "slow file":
            self.dribble(rest)
        self.wfile.write(rest[: server.cuts.pop(0)] if server.cuts else rest)

    def dribble(self, content: bytes) -> None:
        for i in range(60):
            time.sleep(0.05)
            self.wfile.write(content[i : i + 1])

    def answer_oddly(self, server: "Server") -> None:
        """Without an end, or nearly."""
        with contextlib.suppress(OSError):  # whoever asked has given up
            if server.odd == "slow headers":
                self.dribble(b"HTTP/1.1 200 OK\r\nServer: " + b"x" * 100)
            elif server.odd == "fast, then slow":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(5 << 20))
                self.dribble(bytes(60))
            elif server.odd in ENDLESS:
                beginning, more = ENDLESS[server.odd]
                self.wfile.write(beginning)
                for _ in range(1 << 14):
                    self.wfile.write(more)
            elif server.odd == "many words":
                self.wfile.write(b"HTTP/1.1 404 " + b"no " * 20_000 + b"\r\n\r\n")
            elif server.odd == "a length without an end":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n" + DATA)
            elif server.odd == "a part":
                self.wfile.write(b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-4/9\r\n\r\nabc")
            else:
                self.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: http://localhost:1/x\r\n\r\n")
                for _ in range(1 << 12):
                    self.wfile.write(bytes(1 << 18))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/model.safetensors"
    digest = hashlib.sha256(DATA).hexdigest()
    monkeypatch.setitem(PUBLISHED, "mine", Published(url, digest, 1, "none", None))
    yield server
    server.shutdown()


def files(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())


def whole(tmp_path: Path) -> bool:
    """Whether there is one file, the right one."""
    (file,) = files(tmp_path)
    return file.read_bytes() == DATA and file.name.endswith("-model.safetensors") and file.name[0] != "."


def test_a_name_is_enough_and_once_is_enough(server: Server, tmp_path: Path) -> None:
    model = ConditionalDETR.from_preset("shapes", 2, decoder_layers=1, num_queries=5)
    assert model.load_weights("mine").missing == []
    assert torch.equal(model.network.class_head.weight, MODEL.network.class_head.weight)
    server.shutdown()
    server.server_close()  # offline from now on
    assert model.load_weights("mine").missing == []
    assert whole(tmp_path)
    (tmp_path / "mine").write_text("a file of that name")
    with pytest.raises(InputError, match="checkpoint mine cannot be read"):
        model.load_weights("mine")


def test_cut_at_ten_places_it_goes_on(server: Server, tmp_path: Path) -> None:
    places = [1, 100, *(len(DATA) * i // 10 for i in range(1, 8)), len(DATA) - 1]
    server.cuts = [b - a for a, b in zip([0, *places], places, strict=False)]
    for place in places:
        with pytest.raises(InputError, match=f"cannot be downloaded: .*{place}"):
            open_source("mine")
        assert all(file.name[0] == "." for file in files(tmp_path))
    assert open_source("mine")[0].read_bytes() == DATA
    assert server.asked == [None, *(f"bytes={place}-" for place in places)]
    assert whole(tmp_path)


def test_another_version_begins_anew(server: Server, tmp_path: Path) -> None:
    server.data, server.tag, server.cuts = DATA[::-1], '"0"', [1000]
    with pytest.raises(InputError, match="cut off"):
        open_source("mine")
    server.data, server.tag = DATA, '"1"'
    open_source("mine")
    assert server.asked == [None, "bytes=1000-", None]
    assert whole(tmp_path)


def test_the_rest_of_another_version_is_not_appended(server: Server, tmp_path: Path) -> None:
    """Without a hash nothing else would tell that two files became one."""
    url = PUBLISHED["mine"].address
    other = safetensors.torch.save({name: tensor + 1 for name, tensor in TENSORS.items()}, {"format": "pt"})
    assert len(other) == len(DATA)
    server.data, server.tag, server.cuts = other, '"0"', [len(DATA) // 2]
    with pytest.raises(InputError, match="cut off"):
        open_source(url)
    server.data, server.tag, server.believing = DATA, '"1"', True
    open_source(url)
    assert whole(tmp_path)


def test_a_rest_may_come_in_parts(server: Server, tmp_path: Path) -> None:
    server.cuts, server.most = [1000], len(DATA) // 2
    for _ in range(2):
        with pytest.raises(InputError, match=f"cut off after .* of {len(DATA)} bytes"):
            open_source("mine")
    open_source("mine")
    assert whole(tmp_path)


def test_what_was_left_complete_is_no_dead_end(server: Server, tmp_path: Path) -> None:
    """Killed before it was given its name: then there is no rest to ask for."""
    target = cache.place_of(PUBLISHED["mine"].address)
    target.parent.mkdir(parents=True)
    target.with_name(f".part-{target.name}").write_bytes(DATA)
    target.with_name(f".part-{target.name}.version").write_text('"1"')
    open_source("mine")
    assert server.asked == [f"bytes={len(DATA)}-", None]
    assert whole(tmp_path)


def test_what_was_left_without_a_version_is_not_appended_to(server: Server, tmp_path: Path) -> None:
    target = cache.place_of(PUBLISHED["mine"].address)
    target.parent.mkdir(parents=True)
    target.with_name(f".part-{target.name}").write_bytes(DATA[:1000])
    open_source("mine")
    assert whole(tmp_path)


def test_links_in_the_cache_are_not_written_through(server: Server, tmp_path: Path) -> None:
    target = cache.place_of(PUBLISHED["mine"].address)
    target.parent.mkdir(parents=True)
    (tmp_path / "precious").write_text("precious")
    target.with_name(f".part-{target.name}").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="cannot be downloaded"):
        open_source("mine")
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ("slow file", r"the server sent \d+ bytes in 1 seconds"),
        ("slow headers", r"the server sent \d+ bytes in 1 seconds"),
        ("fast, then slow", r"the server sent \d+ bytes in 1 seconds"),
        ("goes on", "the server sent more than 64 kB that are no file"),
        ("trailers", "the server sent more than 64 kB that are no file"),
        ("extensions", "the server sent more than 64 kB that are no file"),
        ("a part", "the server sent a part of it, and was asked for all"),
        ("moved for ever", "Connection refused"),
    ],
)
def test_servers_without_an_end(odd: str, words: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cond_detr.connection.PATIENCE", 1)
    server.odd = odd
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=words):
        open_source("mine")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_a_message_is_not_as_long_as_a_server_likes(server: Server) -> None:
    server.odd = "many words"
    with pytest.raises(InputError, match=r"cannot be downloaded: .*404: no no no") as error:
        open_source("mine")
    assert len(str(error.value)) < 500


def test_names_in_other_alphabets(server: Server, tmp_path: Path) -> None:
    """Of which file systems count the bytes."""
    name = "漢" * 100 + ".safetensors"
    open_source(PUBLISHED["mine"].address.replace("model.safetensors", name))
    (file,) = files(tmp_path)
    assert file.read_bytes() == DATA


def test_a_length_that_no_file_has(server: Server, tmp_path: Path) -> None:
    """More digits than Python makes a number of: taken for none, as http.client does."""
    server.odd = "a length without an end"
    open_source("mine")
    assert whole(tmp_path)


@pytest.mark.parametrize("name", ["", ".version"])
def test_pipes_and_links_in_the_cache(name: str, server: Server, tmp_path: Path) -> None:
    """A pipe is not waited for, and what a link leads to is not written."""
    target = cache.place_of(PUBLISHED["mine"].address)
    target.parent.mkdir(parents=True)
    (tmp_path / "precious").write_text("precious")
    beside = target.with_name(f".part-{target.name}{name}")
    beside.symlink_to(tmp_path / "precious")
    with contextlib.suppress(InputError):
        open_source("mine")
    assert (tmp_path / "precious").read_text() == "precious"
    for path in target.parent.iterdir():
        path.unlink()
    os.mkfifo(beside)
    with contextlib.suppress(InputError):
        open_source("mine")


def test_a_stopped_download_goes_on(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By SIGTERM as by Ctrl-C."""

    def stop(*_: Any) -> int:
        raise SystemExit(143)

    server.cuts = [5000]
    with monkeypatch.context() as patch:
        patch.setattr("cond_detr.connection.Paced.readinto", stopping_after(3000, stop))
        with pytest.raises(SystemExit):
            open_source("mine")
    assert [path.name[:6] for path in files(tmp_path)] == [".part-", ".part-"]
    server.cuts = []
    open_source("mine")
    assert whole(tmp_path)


def test_all_of_it_is_no_rest(server: Server, tmp_path: Path) -> None:
    """Whatever else the answer says."""
    server.cuts, server.odd = [5000], "all of it"
    with pytest.raises(InputError, match="cut off"):
        open_source("mine")
    open_source("mine")
    assert whole(tmp_path)


def stopping_after(most: int, stop: Callable[[], int]) -> Callable[[Any, Any], int | None]:
    readinto = Paced.readinto
    return lambda self, buffer: stop() if self.count > most else readinto(self, memoryview(buffer)[:1000])


@pytest.mark.parametrize("url", ["file://localhost/etc/passwd", "ftp://localhost/a.jpg", "http://example.org/a.jpg"])
def test_only_https_and_this_machine(url: str) -> None:
    with pytest.raises(InputError, match="is not https"):
        ConditionalDETR.from_preset("shapes", 2, decoder_layers=1).predict(url)


def test_addresses_as_people_paste_them() -> None:
    assert as_sent("https://a.org/my photo.jpg?b=ö&c=d%20e#f") == "https://a.org/my%20photo.jpg?b=%C3%B6&c=d%20e#f"
    assert as_sent("https://Пример.example:8443/x.png") == "https://xn--e1afmkfd.example:8443/x.png"
    assert as_sent("https://me@bücher.example/x") == "https://me@xn--bcher-kva.example/x"
    with pytest.raises(InputError, match=r"is no address: write straße\.de as the registrar does, beginning with xn--"):
        open_source("https://straße.de/x.pt")
    with pytest.raises(InputError, match="is no address"):
        open_source("https://" + 70 * "é" + ".example/x.pt")
    with pytest.raises(InputError, match="cannot be downloaded"):
        open_source("https://localhost/\udcff.pt")


def test_without_versions_nothing_is_kept(server: Server, tmp_path: Path) -> None:
    server.tag, server.cuts = None, [1000]
    with pytest.raises(InputError, match="cut off after 1000 of"):
        open_source("mine")
    assert files(tmp_path) == []
    open_source("mine")
    assert server.asked == [None, None]
    assert whole(tmp_path)


def test_a_wrong_hash(server: Server, tmp_path: Path) -> None:
    server.data = DATA[:-1] + bytes([DATA[-1] ^ 1])
    with pytest.raises(InputError, match=r"is another file: its SHA-256 begins with \w{8}, expected \w{8}$"):
        open_source("mine")
    assert files(tmp_path) == []
    # pieces of two files under one version
    server.cuts = [1000]
    with pytest.raises(InputError, match="cut off"):
        open_source("mine")
    server.data = DATA[:500] + bytes(len(DATA) - 500)
    with pytest.raises(InputError, match="is another file"):
        open_source("mine")
    assert files(tmp_path) == []
    server.data = DATA
    open_source("mine")
    assert whole(tmp_path)


def test_a_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = cache.fetch

    def full(url: str, file: Any, name: str, **how: Any) -> None:
        class Full:
            def __getattr__(self, attribute: str) -> Any:
                return getattr(file, attribute)

            def write(self, part: bytes) -> int:
                file.write(part[:1000])
                raise OSError(28, "No space left on device")

        fetch(url, Full(), name, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "fetch", full)
    with pytest.raises(InputError, match=r"cannot be downloaded: .*No space left on device"):
        open_source("mine")
    assert files(tmp_path) == []


def test_two_processes_at_once(server: Server, tmp_path: Path) -> None:
    code = (
        "import sys, torch; torch.hub.get_dir = lambda: sys.argv[1]; from cond_detr.weights.reading import open_source;"
        "print(open_source(sys.argv[2])[0].name)"
    )
    url = PUBLISHED["mine"].address
    command = [sys.executable, "-c", code, str(tmp_path / "cache"), url]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    names = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(names) == 1
    assert whole(tmp_path)


def test_a_download_that_another_process_is_at(server: Server, tmp_path: Path) -> None:
    target = cache.place_of(PUBLISHED["mine"].address)
    target.parent.mkdir(parents=True)
    with cache.unfinished(target) as (_, file):
        file.write(b"half of it")
        open_source("mine")
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("source", ["a/b", "microsoft/conditional-detr-resnet-50", "A-1/b_2.c"])
def test_names_on_the_hub(source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_on_the_hub(source)
    Path(source).parent.mkdir()
    assert not is_on_the_hub(source)


@pytest.mark.parametrize(
    "source", ["a", "a/b/c", "/a", "a/", "./a", "../a", "~/a", "a/b.pt", "a/b.safetensors", "https://a/b"]
)
def test_what_is_no_name_on_the_hub(source: str) -> None:
    assert not is_on_the_hub(source)


def test_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a stand-in for huggingface_hub."""
    import types

    class EntryNotFoundError(Exception):
        pass

    have = {"model.safetensors": DATA}

    def hf_hub_download(repository: str, name: str) -> str:
        if repository == "no/where":
            raise OSError("401 Client Error.\n\nRepository Not Found")
        if name not in have or repository == "no/weights":
            raise EntryNotFoundError(name)
        path = tmp_path / name
        path.write_bytes(have[name])
        return os.fspath(path)

    hub, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    hub.hf_hub_download = hf_hub_download  # type: ignore[attr-defined]
    errors.EntryNotFoundError = EntryNotFoundError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    monkeypatch.setattr(published, "need", lambda *_: None)
    model = ConditionalDETR.from_preset("shapes", 2, decoder_layers=1, num_queries=5)
    assert model.load_weights("some/detector").missing == []
    for name, words in (
        ("no/where", "401 Client Error. Repository Not Found"),
        ("no/weights", "have none of model"),
    ):
        with pytest.raises(InputError, match=words):
            model.load_weights(name)


def test_a_misspelt_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"does not exist; did you mean the published conditional-detr-r50\?"):
        ConditionalDETR.from_checkpoint("conditional-detr-r-50")


def test_the_table() -> None:
    for name, each in PUBLISHED.items():
        assert each.address.startswith("https://")
        assert each.sha256 in each.address  # as PyTorch's hub has it, or unknown
        assert (each.preset is None) == name.startswith("resnet")
