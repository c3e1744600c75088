"""Cases for input from outside: image files, JSONL files, links, command lines, server settings."""

from __future__ import annotations

import io
import json
import struct
import tempfile
import traceback
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import gprune
from gprune import kept_count
from gprune.ask.links import ComparisonSettings
from gprune.ask.prompts import open_image
from gprune.budget import parse_keep
from gprune.cli import app
from gprune.evaluation.tasks import read_jsonl
from gprune.serving.plan import ImagePlan, decode_keep, encode_keep
from gprune.serving.settings import ServerSettings

MOST_PIXELS = 200_000
GPRUNE = str(Path(gprune.__file__).parent)
MODES = {
    "PNG": ("1", "L", "P", "RGB", "RGBA", "LA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "I;16", "F"),
    "PPM": ("1", "L", "RGB"),
}
SIZES = ((1, 1), (1, 10_000), (10_000, 1), (7, 5), (64, 48), (600, 400))
ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
ORIENTATION = 0x0112


def check_refusal(error: Exception, naming: str = "") -> None:
    """Checks that gprune itself raised the error, not Python or torch, and with a sentence."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    raised_here = last.filename.startswith(GPRUNE) and (last.line or "").startswith("raise ")
    assert raised_here, repr(error)
    assert len(str(error)) > 20
    assert naming in str(error)


def decompression_bomb(width: int, height: int) -> bytes:
    """Returns a PNG of a few bytes whose header declares a huge size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        code = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + code

    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@st.composite
def image_files(draw: st.DrawFn) -> tuple[bytes, tuple[int, int] | None]:
    """Draws a file's bytes, and the size it must have after EXIF rotation; None if broken."""
    if draw(st.integers(0, 19)) == 0:
        big = st.integers(1, 2**31 - 1)
        width, height = draw(big), draw(big)
        return decompression_bomb(width, max(height, MOST_PIXELS // width + 1)), None
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200)), None
    kind = draw(st.sampled_from(list(MODES)))
    mode = draw(st.sampled_from(MODES[kind]))
    size = draw(st.sampled_from(SIZES))
    orientation = draw(st.integers(0, 9)) if kind in ("PNG", "JPEG", "WEBP", "TIFF") else 1
    data = encode_picture(kind, mode, size, orientation, draw(st.booleans()))
    width, height = size
    upright = (height, width) if orientation in ROTATED else size
    defect = draw(st.sampled_from((None, None, "cut", "flip", "junk")))
    if defect is None:
        return data, upright if width * height <= MOST_PIXELS else None
    position = draw(st.integers(0, len(data) - 1))
    if defect == "cut":
        return data[:position], None
    junk = draw(st.binary(min_size=1, max_size=8))
    if defect == "flip":
        return data[:position] + junk + data[position + len(junk) :], None
    return data[:position] + junk + data[position:], None


def encode_picture(
    kind: str, mode: str, size: tuple[int, int], orientation: int, animated: bool
) -> bytes:
    """Encodes a gradient in a format and mode, with an EXIF orientation and further frames."""
    picture = Image.linear_gradient("L").resize(size).convert("L")
    if mode in ("I;16", "F"):
        picture = picture.convert("F") if mode == "F" else Image.new("I;16", size, 1000)
    else:
        picture = picture.convert("RGB").convert(mode)
    options: dict[str, Any] = {}
    if orientation != 1:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    if animated and kind in ("GIF", "PNG", "WEBP", "TIFF") and mode in ("RGB", "L"):
        options |= {"save_all": True, "append_images": [picture.rotate(90)] * 2}
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def check_image(case: tuple[bytes, tuple[int, int] | None]) -> None:
    """Checks that a valid file is read upright, a broken one within the limit or refused."""
    data, size = case
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        file.write(data)
        file.flush()
        picture = message = None
        try:
            picture = open_image(Path(file.name), MOST_PIXELS)
        except ValueError as error:
            message = str(error)
    if picture is None:
        assert message.startswith(f"image {file.name!r} cannot be read: ")
        assert size is None, f"a valid file was refused: {message}"
        return
    assert picture.mode == "RGB"
    assert picture.width * picture.height <= MOST_PIXELS
    assert size is None or picture.size == size


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("image", "question", "answer", "type", "x")), inner)
    ),
    max_leaves=6,
)
VALID_LINE = st.fixed_dictionaries(
    {
        "image": st.sampled_from(("a.png", "b.png")) | st.just(["a.png", "b.png"]),
        "question": st.text(max_size=12),
        "answer": st.text(max_size=5) | st.lists(st.text(max_size=5), min_size=1, max_size=2),
    },
    optional={"type": st.text(max_size=5)},
)


@st.composite
def jsonl_files(draw: st.DrawFn) -> tuple[bytes, int | None]:
    """Draws a file's bytes, and its number of examples; None if it must be refused."""
    good = [
        json.dumps(line, ensure_ascii=False)
        for line in draw(st.lists(VALID_LINE, min_size=1, max_size=4))
    ]
    defect = draw(st.sampled_from((None, None, "json", "text", "bytes", "empty")))
    if defect is None:
        return "\n".join(good).encode(), len(good)
    if defect == "empty":
        return draw(st.sampled_from((b"", b"\n\n", b"  "))), None
    position = draw(st.integers(0, len(good)))
    if defect == "json":
        value = draw(JSON.filter(lambda value: not is_example(value)))
        line = json.dumps(value).encode()
    elif defect == "text":
        line = b"{" + draw(st.text(max_size=20)).encode("utf-8", "replace").replace(b"\n", b"")
    else:
        line = draw(st.sampled_from((b"\xff\xfe{}", b'{"image": "\xe9"}', b"\x00", b"\x80")))
    lines = [line.encode() for line in good]
    lines.insert(position, line)
    return b"\n".join(lines), None


def is_example(value: Any) -> bool:
    """Checks whether a line with this value may be valid: the fields exist with possible types."""
    if not isinstance(value, dict) or not {"image", "question", "answer"} <= set(value):
        return False
    return all(isinstance(value[name], str | list) for name in ("image", "answer"))


def check_jsonl(case: tuple[bytes, int | None]) -> None:
    """Checks that a valid file is read, and a broken one is refused by name."""
    data, count = case
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.png", "b.png"):
            (Path(folder) / name).touch()
        path = Path(folder) / "cases.jsonl"
        path.write_bytes(data)
        examples = message = None
        try:
            examples = read_jsonl(path)
        except ValueError as error:
            message = str(error)
    if examples is None:
        assert message.startswith(str(path))
        assert count is None, f"a valid file was refused: {message}"
        return
    assert count is not None, "a broken file was accepted"
    assert len(examples) == count


def check_any_jsonl(data: bytes) -> None:
    """Checks that a file is accepted only if every line is JSON with the required fields."""
    try:
        rows = [json.loads(line) for line in data.split(b"\n") if line.strip()]
    except (ValueError, RecursionError):
        rows = []
    valid = rows and all(map(is_example, rows))
    try:
        check_jsonl((data, len(rows) if valid else None))
    except AssertionError as error:
        # Its pictures may be missing, and its lists empty or of another type.
        if not valid or "a valid file was refused" not in str(error):
            raise


QUERIES = st.dictionaries(
    st.sampled_from(("question", "methods", "keep", "scene", "x", "__class__")),
    st.sampled_from(("", "0.5", "1", "-1", "nan", "1e999", "gprune", "gprune,tome", ",", "9" * 30))
    | st.text(max_size=600),
)


def check_link(query: dict[str, str]) -> None:
    """Checks that bad fields are named and get defaults, and that the link comes out again."""
    settings, problems = ComparisonSettings.from_query(query)
    assert 0 < settings.keep <= 1
    for problem in problems:
        name = problem.split(":")[0]
        assert len(problem) > 20
        assert getattr(settings, name) == getattr(ComparisonSettings(), name)
    pairs = parse_qsl(settings.to_query(), keep_blank_values=True)
    again, none = ComparisonSettings.from_query(dict(pairs))
    assert none == []
    assert again.to_query() == settings.to_query()


WORDS = st.sampled_from(
    (
        "0",
        "1",
        "-1",
        "0.36",
        "1.5",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "",
        " ",
        "64",
        "9" * 40,
        "٣",
        "x",
    )
) | st.text(max_size=6)
NUMBERS = st.sampled_from((0, 1, -1, 2, 32, 576, 4096, 10**18, -(10**9)))
FLOPS = ("hidden-size", "intermediate-size", "layers", "heads", "kv-heads", "head-dim")


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Draws command lines that end before a model is loaded; most are invalid."""
    if draw(st.booleans()):
        words = ["flops"]
        for option in draw(st.sets(st.sampled_from((*FLOPS, "visual-tokens", "text-tokens")))):
            words += [f"--{option}", str(draw(NUMBERS))]
        for option in ("keep", "target-saving"):
            if draw(st.booleans()):
                words += [f"--{option}", draw(WORDS)]
        if draw(st.booleans()):
            words += ["--convention", draw(st.sampled_from(("fastv", "linear", "exact", "x", "")))]
        return words
    command = draw(st.sampled_from(("demo", "run", "eval", "bench", "app", "nosuch", "methods")))
    bad = {
        "demo": ["--method", "nosuch"],
        "run": ["x", "--prompt", "x", "--image", "/nosuch.png"],
        "eval": ["tiny", "--tasks", "/nosuch.jsonl"],
        "bench": ["--method", "nosuch"],
        "app": ["--port", "0"],
    }
    words = [command, *bad.get(command, [])]
    for option in draw(
        st.sets(st.sampled_from(("--keep", "--seed", "--limit", "--out", "--json")))
    ):
        words += [option] if option == "--json" else [option, draw(WORDS)]
    return words


def check_command(words: list[str]) -> None:
    """Checks that a command succeeds or exits with code 2 and a message, never with a traceback."""
    result = CliRunner().invoke(app, words)
    problem = result.exception
    assert problem is None or isinstance(problem, SystemExit), (words, repr(problem))
    assert result.exit_code in (0, 2), (words, result.exit_code)
    if result.exit_code == 2:
        assert len(result.stderr) > 10


def check_keep(text: str) -> None:
    """Checks that a command line's budget keeps a token of every image, or is refused by name."""
    try:
        keep = gprune.make("random", parse_keep(text)).keep
    except ValueError as error:
        check_refusal(error, "keep=")
        return
    for n in (1, 7, 576):
        assert 1 <= kept_count(n, keep) <= n


SERVING = st.fixed_dictionaries(
    {},
    optional={
        "keep": st.sampled_from((0.5, 1, 64, 10**30, {"tile": 0.5}, {"image": 1, "x": 2})) | JSON,
        "method": st.sampled_from(("gprune", "random", "fastv", "trim", "recommended", "x")) | JSON,
        "options": st.dictionaries(st.sampled_from(("threshold", "seed", "keep", "x")), JSON)
        | JSON,
        "x": JSON,
    },
)


def check_serving(value: Any) -> None:
    """Checks that a server's settings are refused, or survive encoding and decoding unchanged."""
    try:
        settings = ServerSettings.from_config(SimpleNamespace(gprune=value))
    except (TypeError, ValueError) as error:
        check_refusal(error)
        return
    assert set(value) <= {"keep", "method", "options"}
    assert settings.label()
    numbers = encode_keep(settings.keep)
    plan = ImagePlan(576, 24, 24, numbers)
    assert ImagePlan.from_tensor(plan.to_tensor()) == plan
    for kind, budget in decode_keep(numbers).items():
        keep = value["keep"][kind] if isinstance(value["keep"], dict) else value["keep"]
        assert kept_count(576, budget) == kept_count(576, 1.0 if keep == 1 else keep)
