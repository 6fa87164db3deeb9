"""Files and overrides that are hostile, damaged or of another kind: one error with file, line and key, at once."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.spec import SpecError, document, load
from adatad.spec.document import MAX_FILES, DocumentError, parse_value, read_document

TEXT = "data: {annotations: a.json, videos: v}\nmodel: {backbone: {mode: frozen}}\n"
LISTS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MAPS = "a0: &a0 {x: 1, y: 1}\n" + "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 30))


def problem(path, *overrides) -> str:
    with pytest.raises(SpecError) as caught:
        load(path, overrides, check_files=False)
    [line] = caught.value.problems
    assert line.isprintable()
    assert len(line) < 700
    return line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: &a [*a]", "s.yaml:1: name.0: holds itself, by an alias"),
        ("name: &a {b: *a}", "s.yaml:1: name.b: holds itself, by an alias"),
        ("data: *nothing", "s.yaml:1: not valid YAML: found undefined alias 'nothing'"),
        ("name: " + "[" * 500 + "]" * 500, "s.yaml:1: is nested deeper than 32 levels"),
        ("name: " + "{a: " * 500 + "1" + "}" * 500, "s.yaml:1: is nested deeper than 32 levels"),
        ("- " * 100_000, "s.yaml:1: is nested deeper than 32 levels"),
        ("? " * 100_000, "s.yaml:1: is nested deeper than 32 levels"),
        ("b: &b " + "[" * 20 + "]" * 20 + "\nc: " + "[" * 20 + "*b" + "]" * 20, "is nested deeper than 32 levels"),
        ("name: a\ntrain: {seed: !!int abc}", "s.yaml:2: train.seed: 'abc' can't be read as int"),
        ("train: {seed: !!bool x}", "s.yaml:1: train.seed: 'x' can't be read as bool"),
        ("train: {seed: !!float x}", "s.yaml:1: train.seed: 'x' can't be read as float"),
        ("train: {seed: !!timestamp x}", "s.yaml:1: train.seed: is marked as timestamp"),
        ("train: {seed: !!timestamp 2001-99-99}", "s.yaml:1: train.seed: is marked as timestamp"),
        ("train: {seed: 2001-99-99}", "s.yaml:1: train.seed: Input should be a valid integer"),
        ("train: {seed: !!binary x}", "s.yaml:1: train.seed: is marked as binary"),
        ("train: !!set {seed}", "s.yaml:1: train: is marked as set"),
        ("train: !!python/object:os.system {}", "s.yaml:1: train: is marked as python/object:os.system"),
        ("train: {seed: " + "9" * 4000 + "}", "s.yaml:1: train.seed: '9999"),
        ("train: {seed: " + "9" * 5000 + "}", "s.yaml:1: train.seed: has 5,000 characters; at most 4,096 are read"),
        ("train: {seed: 0x" + "f" * 4000 + "}", "is larger than any number of a spec"),
        ("train: {seed: 010}\nema: {decay: 1:30}", "s.yaml:2: ema.decay: Input should be a valid number"),
        ("train: {seed: true}", "s.yaml:1: train.seed: expected a number, got True"),
        ("{? [a] : 1}", "s.yaml:1: expected a name as key, got a list or a section"),
        ("name: 'a\0b'", "s.yaml:1: not valid YAML: holds a character that YAML doesn't allow: '\\x00'"),
        ('name: a\ndata: {videos: "a\\0b"}', "s.yaml:2: data.videos: holds the control character \\x00"),
        ('name: "a\\nb"', "s.yaml:1: name: holds a line break (\\n)"),
        ('name: "a\\rb"', "s.yaml:1: name: holds a line break (\\r)"),
        ('name: "a\\u2028b"', "s.yaml:1: name: holds a line break (\\u2028)"),
        ('name: "a\\x85b"', "s.yaml:1: name: holds a line break (\\x85)"),
        ('run: {root: "a\\eb"}', "s.yaml:1: run.root: holds the control character \\x1b"),
        ('data: {classes: ["a", "b\\tc"]}', "s.yaml:1: data.classes.1: holds the control character \\t"),
        ('name: "\\ud800"', "s.yaml:1: name: holds half of a character (\\ud800)"),
        ('name: "\\UFFFFFFFF"', "s.yaml:1: not valid YAML"),
        ('"a\\nb": 1', "s.yaml:1: holds a line break (\\n)"),
        ("%YAML " + "9" * 5000 + ".1\n---\na: 1", "s.yaml:1: not valid YAML"),
        ("a: 1\n--- \nb: 1", "s.yaml:2: not valid YAML"),
        ("name: |\n  a\n  b", "s.yaml:1: name: holds a line break (\\n)"),
        ("train: {seed: 1, seed: 2}", "s.yaml:1: train: seed stands twice; keep one"),
        ("name: a\n  b: 1", "s.yaml:2: not valid YAML: mapping values are not allowed here"),
        ("base: ''", "s.yaml:1: base: expected a path"),
        ("name: a\nbase: nowhere/x.yaml", "s.yaml:2: base: "),
        ("base: .", "is no regular file, but a folder"),
        ("base: /dev/zero", "/dev/zero: is no regular file, but a device"),
        ("base: $NOWHERE/x.yaml", "s.yaml:1: base: the variable $NOWHERE isn't set"),
        ("base: s.yaml", "its base files lead back to it"),
        (f"base: {'x' * 300}.yaml", "no such file"),
    ],
    ids=lambda text: repr(text[:40]),
)  # fmt: skip
def test_what_is_no_spec_is_refused_with_file_line_and_key(tmp_path, text, said):
    path = tmp_path / "s.yaml"
    path.write_bytes((text if "model" in text else f"{text}\n").encode())
    if "Input should" in said or "expected a number" in said or "larger" in said:
        path.write_text(f"{text}\n{TEXT}")
    assert said in problem(path)


@pytest.mark.parametrize(
    "text",
    [LISTS, MAPS, "a: [" + "1," * 2_000 + "]", "".join(f"k{n}: 1\n" for n in range(2_000))],
    ids=["lists", "maps", "a long list", "many keys"],
)
def test_values_are_counted_with_aliases_before_they_are_made(tmp_path, monkeypatch, text):
    monkeypatch.setattr(document, "MAX_VALUES", 500)
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(DocumentError, match=r"s\.yaml:\d+: .*holds more than 500 values"):
        read_document(path)


def test_values_of_all_base_files_count_together(tmp_path, monkeypatch):
    monkeypatch.setattr(document, "MAX_VALUES", 100)
    (tmp_path / "base.yaml").write_text(f"data: {{classes: [{', '.join('abcdefghijklmnop')}]}}\n")
    (tmp_path / "s.yaml").write_text(f"base: [{', '.join(['base.yaml'] * 9)}]\n")
    assert "holds more than 100 values, with its base files and aliases" in problem(tmp_path / "s.yaml")


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(document, "MAX_FILE_BYTES", 1000)
    monkeypatch.setattr(document, "MAX_SPEC_BYTES", 4000)
    path = tmp_path / "s.yaml"
    path.write_text("# " + "x" * 1000)
    assert "s.yaml: has 1,002 bytes; at most 1,000 are read here" in problem(path)
    (tmp_path / "half.yaml").write_text("# " + "x" * 500 + "\nname: a\n")
    path.write_text(f"base: [{', '.join(['half.yaml'] * 9)}]\n")
    assert "half.yaml: more than 4,000 characters with the other base files" in problem(path)


def test_many_base_files_are_refused_in_a_row_and_as_a_fan(tmp_path):
    for n in range(MAX_FILES + 10):
        (tmp_path / f"{n}.yaml").write_text(f"base: {n + 1}.yaml\n")
    assert problem(tmp_path / "0.yaml").endswith(
        f"more than {MAX_FILES} base files, each counted as often as it is named"
    )
    for n in range(20):
        (tmp_path / f"{n}.yaml").write_text(f"base: [{n + 1}.yaml, {n + 1}.yaml]\n")
    (tmp_path / "20.yaml").write_text("name: a\n")
    assert f"more than {MAX_FILES} base files" in problem(tmp_path / "0.yaml")


def test_only_regular_files_are_read(tmp_path):
    path = tmp_path / "s.yaml"
    os.mkfifo(tmp_path / "pipe")
    path.write_text("base: pipe\n")
    assert "pipe: is no regular file, but a pipe" in problem(path)
    assert "is no regular file, but a pipe" in problem(tmp_path / "pipe")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    assert "loop.yaml: can't be read: Too many levels of symbolic links" in problem(tmp_path / "loop.yaml")
    path.write_text("base: loop.yaml\n")
    assert "loop.yaml: can't be read: Too many levels of symbolic links" in problem(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: \xff\xfe\xfa", "is no text in UTF-8"),
        (b"\x80\x04\x95", "is no text in UTF-8"),
        (b"PK\x03\x04\x00\x01", "not valid YAML"),
        (b"\x1f\x8b\x08\x00", "can't be unpacked"),
        (b"<!DOCTYPE html><html>", "s.yaml: is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9", "s.yaml: is a pointer of Git LFS"),
        (b"{", "s.yaml:2: not valid YAML"),
        (b"", "expected a mapping of sections"),
    ],
)
def test_files_of_another_kind(tmp_path, content, said):
    path = tmp_path / "s.yaml"
    path.write_bytes(content + b"\n")
    assert said in problem(path)


@pytest.mark.parametrize(
    "text", [TEXT.encode("utf-16"), b"\xef\xbb\xbf" + TEXT.encode(), TEXT.replace("\n", "\r\n").encode()]
)
def test_what_windows_writes_is_read(tmp_path, text):
    path = tmp_path / "s.yaml"
    path.write_bytes(text)
    assert load(path, ["optimizer.backbone=null"], check_files=False).data.videos == "v"


def test_text_of_a_file_that_is_no_spec_does_not_reach_the_message(tmp_path):
    """base: /etc/shadow is such a file; its lines would be keys."""
    path, secret = tmp_path / "s.yaml", tmp_path / "shadow"
    path.write_text("base: shadow\n" + TEXT)
    for text in (
        "".join(f"user{n}:$6$secret:19000:0:99999:7::: \n" for n in range(30)),
        "user: secret\n$6$secret: b\n",
    ):
        secret.write_text(text)
        line = problem(path)
        assert "shadow: is no spec: none of its" in line
        assert "secret" not in line.replace(str(secret), "")
    secret.write_text("name: a\n" + "".join(f"secret{n}: x\n" for n in range(300)))
    with pytest.raises(SpecError) as caught:
        load(path, check_files=False)
    assert "\n".join(caught.value.problems).count("secret") <= 10
    assert any("295 more" in line for line in caught.value.problems)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.seed=&a [*a]", "isn't a YAML value that a spec takes: 0: holds itself, by an alias"),
        ("train.seed=" + "[" * 500, "is nested deeper than 32 levels"),
        ("train.seed=" + "9" * 5000, "has 5,000 characters"),
        ("train.seed=!!int abc", "'abc' can't be read as int"),
        ("train.seed=!!python/object:os.system {}", "is marked as python/object:os.system"),
        ('name="a\\nb"', "holds a line break (\\n)"),
        ("name=a\0b", "holds the control character \\x00"),
        ("name=a\nb", "holds a line break (\\n)"),
        ("optimizer.backbone.custom.²=1", "has no item ²"),
        ("optimizer.backbone.custom.-1=1", "has no item -1"),
        (f"optimizer.backbone.custom.{'9' * 5000}.lr=1", "which has no item 9999"),
        (".".join("a" * 500) + "=1", "is nested deeper than 32 levels"),
        ("a..b=1", "expected KEY=VALUE"),
        ("=1", "expected KEY=VALUE"),
        ("train.se\ned=1", "holds a line break (\\n); expected KEY=VALUE"),
        ("base=other.yaml", "base belongs into a file"),
        ("train.seed={a: 1, a: 2}", "a stands twice"),
        ("train.seed=1e400", "Input should be a finite number, got inf"),
    ],
    ids=lambda text: text[:40],
)
def test_overrides_are_bounded_in_the_same_way(tmp_path, override, said):
    path = tmp_path / "s.yaml"
    path.write_text(TEXT.replace("frozen", "adapter") + "optimizer: {backbone: {custom: [{name: adapter, lr: 1}]}}\n")
    line = problem(path, override)
    assert line.startswith("--set ")
    assert said in line


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", "010"), ("1:30", "1:30"), ("2001-01-01", "2001-01-01"), ("2001-99-99", "2001-99-99"), ("0x1f", 31),
        ("1_000", 1000), ("-5", -5), (".5", 0.5), ("5.", 5.0), ("1.5e3", 1500.0), ("-.inf", float("-inf")),
        ("1e", "1e"), ("0", 0), ("0.0", 0.0), ("=", "="), ("<<", "<<"), ("!!str 5", "5"), ("", None),
        ("~", None), ("~/x", "~/x"),
    ],
)  # fmt: skip
def test_plain_words_are_numbers_only_where_they_look_like_one(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


DEMO = (Path(__file__).parents[2] / "configs" / "demo" / "tia.yaml").read_text()
PIECES = [
    "&a ",
    "*a",
    "[",
    "]",
    "{",
    "}",
    "!!int ",
    "? ",
    "- ",
    ": ",
    "|\n",
    "'",
    '"',
    "%",
    "<<: ",
    "\x00",
    "\ud800",
    "9" * 99,
]


@given(st.lists(st.tuples(st.integers(0, len(DEMO)), st.integers(0, 30), st.sampled_from(PIECES)), max_size=4))
def test_a_damaged_spec_is_read_or_refused(changes):
    text = DEMO
    for place, length, piece in changes:
        text = text[:place] + piece + text[place + length :]
    path = Path(os.environ["DAMAGED"])
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with suppress(SpecError):
        load(path, check_files=False)


@pytest.fixture(autouse=True, scope="module")
def damaged_file(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAMAGED", str(tmp_path_factory.mktemp("damaged") / "s.yaml"))
        yield
