"""Weight files as they shouldn't be: each is refused in one line that names it, before anything is made of it."""

import json
import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_backbone_files import Bomb, backbone, original

from adatad.convert import backbone_weights as backbone_files
from adatad.convert.backbone_weights import convert_backbone, encoder_shapes, load_backbone_weights
from adatad.convert.weight_file import WeightsError, read_weight_file, write_safetensors, write_torch
from adatad.errors import UserError
from adatad.files import FileError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1234567\n"
PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>"


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"x", "not a readable"),
        (POINTER, r"a pointer of Git LFS.*1\.2 MB.*git lfs pull"),
        (PAGE, "an HTML page"),
        (b"\x1f\x8b\x08" + b"\0" * 40, "gunzip"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 40, "HDF5"),
    ],
)
def test_what_lies_in_the_place_of_weights_is_told(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message) as refused:
        read_weight_file(tmp_path / name)
    assert "torch.load" not in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "fifo.pth")
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    for name, message in (
        ("loop.pth", "levels of symbolic links"),
        ("fifo.pth", "is no regular file, but a pipe"),
        (".", "a folder"),
        ("gone.pth", "gone"),
    ):
        with pytest.raises(WeightsError, match=message):
            read_weight_file(tmp_path / name)
    with pytest.raises(WeightsError, match="a device"):
        read_weight_file("/dev/zero")


def zip_of(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_archives_are_told_from_torch_s(tmp_path):
    zip_of(tmp_path / "a.pth", **{"readme.txt": "x"})
    with pytest.raises(WeightsError, match=r"zip archive, but not torch\.save's \(it holds readme\.txt\)"):
        read_weight_file(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(WeightsError, match="not a readable weight file"):
        read_weight_file(tmp_path / "b.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "c.pth")
    with pytest.raises(WeightsError, match=r"TorchScript.*torch\.jit\.load"):
        read_weight_file(tmp_path / "c.pth")
    torch.save(original(backbone()), tmp_path / "d.pth")
    with (
        zipfile.ZipFile(tmp_path / "d.pth") as old,
        zipfile.ZipFile(tmp_path / "e.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.namelist():
            new.writestr(member, old.read(member))
    with pytest.raises(WeightsError, match="was packed again"):
        read_weight_file(tmp_path / "e.pth")


def test_safetensors_are_read_whatever_they_are_called(tmp_path):
    made = backbone()
    tensors = {name: p.detach().clone() for name, p in made.named_parameters() if "adapter" not in name}
    save_file(tensors, tmp_path / "weights.pth")
    fresh = backbone(seed=1)
    load_backbone_weights(fresh, tmp_path / "weights.pth")
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), fresh.parameters(), strict=True))


def itself():
    content = {"epoch": 1}
    content["state_dict"] = content
    return content


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (itself, "no parameters found"),
        ({}, "got nothing"),
        ([torch.ones(1)], "got list"),
        ({"x": torch.ones(3).to_sparse()}, r"x is sparse_coo; save tensor\.to_dense"),
        (lambda: {"x": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, "x is quantized"),
        ({"x": torch.empty(3, device="meta")}, "has no numbers"),
        ({"x": torch.zeros(1).expand(1 << 20, 1 << 20)}, r"claims 4,398,046,511,104 bytes, of which the file holds 4"),
        ({"module.x": torch.ones(1), "x": torch.ones(1)}, "holds x twice"),
    ],
)
def test_tensors_that_are_no_plain_arrays_are_named(content, message, tmp_path):
    torch.save(content() if callable(content) else content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        read_weight_file(tmp_path / "w.pth")


@pytest.mark.parametrize("use", ["train", "convert"])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("blocks.1.norm2.bias", lambda t: t * float("nan"), r"blocks\.1\.norm2\.bias holds NaN"),
        ("blocks.1.mlp.fc1.weight", lambda t: t / 0, r"fc1\.weight holds"),
        ("blocks.0.attn.qkv.weight", lambda t: t.long(), r"qkv\.weight is int64, expected floats"),
        ("blocks.0.attn.qkv.weight", lambda t: t.bool(), "is bool"),
        ("blocks.0.attn.qkv.weight", lambda t: t.to(torch.complex64), "is complex64"),
        ("blocks.0.norm1.weight", lambda t: t[0], r"norm1\.weight is \(\), expected \(16,\)"),
        ("patch_embed.proj.weight", lambda t: t[0, 0], "doesn't fit the backbone|isn't a whole encoder"),
        ("blocks.0.mlp.fc1.weight", lambda t: t[:, 0], "doesn't fit the backbone|isn't a whole encoder"),
        ("blocks.1.norm2.bias", lambda t: None, r"missing blocks\.1\.norm2\.bias"),
        ("blocks.1000000000.norm1.bias", lambda t: torch.ones(16), r"unknown blocks\.1000000000"),
        ("blocks." + "9" * 5000 + ".norm1.bias", lambda t: torch.ones(16), r"unknown blocks\.9{100}"),
        ("blocks.\x1b[31m.x", lambda t: torch.ones(16), r"unknown blocks\.\\x1b"),
    ],
)
def test_weights_that_make_no_sense_are_refused_by_training_and_converter_alike(use, name, change, message, tmp_path):
    tensors, file = original(backbone()), tmp_path / "w.pth"
    tensors[name] = change(tensors.get(name))
    torch.save({key: tensor for key, tensor in tensors.items() if tensor is not None}, file)
    loads = {"train": lambda: load_backbone_weights(backbone(seed=1), file),
             "convert": lambda: convert_backbone(file, tmp_path / "out.pth")}  # fmt: skip
    with pytest.raises(WeightsError, match=message) as refused:
        loads[use]()
    assert len(str(refused.value)) < 2000
    assert {path.name for path in tmp_path.iterdir()} == {"w.pth"}


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_floats_of_any_kind_are_weights(kind, tmp_path):
    torch.save({name: tensor.to(kind) for name, tensor in original(backbone()).items()}, tmp_path / "w.pth")
    assert load_backbone_weights(backbone(seed=1), tmp_path / "w.pth").mapped == len(list(backbone().parameters()))


def test_a_table_of_positions_with_nan_changes_nothing(tmp_path):
    table = torch.full((1, 32, 16), float("nan"))
    torch.save(original(backbone()) | {"pos_embed": table}, tmp_path / "w.pth")
    fresh = backbone(seed=1)
    before = [parameter.detach().clone() for parameter in fresh.parameters()]
    with pytest.raises(WeightsError, match="pos_embed holds NaN"):
        load_backbone_weights(fresh, tmp_path / "w.pth")
    assert all(torch.equal(a, b) for a, b in zip(before, fresh.parameters(), strict=True))


@pytest.mark.parametrize("preset", ["small", "vjepa2-large"])
@pytest.mark.parametrize("tubelet", [1, 2])
def test_expected_names_and_shapes_are_a_backbone_s(tubelet, preset):
    made = backbone(tubelet=tubelet, depth=3, preset=preset)
    here = {name: p.shape for name, p in made.named_parameters() if "adapter" not in name}
    assert encoder_shapes(backbone_files.sizes_of(here), made.family) == here


def test_the_advice_for_objects_of_python_needs_no_trust(tmp_path, capsys):
    with (tmp_path / "plain.pth").open("wb") as file:
        pickle.dump({"x": Bomb()}, file)
    torch.save({"x": Bomb()}, tmp_path / "bomb.pth")
    for name, message in (("plain.pth", "neither torch.save's nor safetensors|run code"), ("bomb.pth", "run code")):
        with pytest.raises(WeightsError, match=message) as refused:
            read_weight_file(tmp_path / name)
        assert "torch.save(model.state_dict(), FILE)" in str(refused.value)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["some text", ".", "0", "(", "}", "weights of nothing"])
def test_a_text_is_said_to_be_no_weight_file(text, tmp_path):
    (tmp_path / "notes.pth").write_text(text)
    with pytest.raises(WeightsError, match="it is neither"):
        read_weight_file(tmp_path / "notes.pth")


@pytest.mark.parametrize(
    "output", ["folder.pth", "pipe.pth", "w.pth", "", "x" * 300 + ".pth", "w.bin", "loop.pth", "a\0b.pth"]
)
def test_an_output_that_cannot_be_written_is_refused_first(output, run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.pth").mkdir()
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    torch.save(original(backbone()), "w.pth")
    written = Path("w.pth").read_bytes()
    done = run_command("weights import", "w.pth", "--output", output)
    assert done.returncode == 2
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder.pth", "loop.pth", "pipe.pth", "w.pth"]
    assert Path("w.pth").read_bytes() == written


@pytest.mark.parametrize("write", [write_safetensors, write_torch])
def test_a_full_disk_ends_in_a_line_and_leaves_what_was_there(write, tmp_path):
    """The system itself refuses the bytes, by a limit on the size of files."""
    file = tmp_path / "w"
    file.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(FileError, match=r"w: can't be written: .*what was there is as it was"):
            write(file, {"x": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    assert file.read_bytes() == b"before"


def test_a_folder_for_the_output_is_made(run_command, tmp_path):
    torch.save(original(backbone()), tmp_path / "w.pth")
    done = run_command("weights import", tmp_path / "w.pth", "--output", tmp_path / "new" / "o.safetensors")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["o.safetensors"]


def header_of(facts: dict) -> bytes:
    text = json.dumps(facts).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 1 << 63) + b"{}",
        header_of({"x": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 4]}}) + b"\0" * 4,
        header_of({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}) + b"\0",
        header_of({"x": {"dtype": "E8M0", "shape": [1], "data_offsets": [0, 1]}}) + b"\0",
        header_of({"__metadata__": {"content": 3}}),
        header_of({"__metadata__": 3}),
    ],
)
def test_tricks_in_a_safetensors_header_end_in_a_line(content, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.safetensors: "):
        load_backbone_weights(backbone(), tmp_path / "w.safetensors")


def damaged(content: bytes, places: list[int], values: bytes, cut: int) -> bytes:
    changed = bytearray(content)
    for place, value in zip(places, values, strict=False):
        changed[place % len(changed)] = value
    return bytes(changed[: len(changed) - cut % len(changed)])


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    """Weights in each form, as bytes by name, and a folder to write damaged ones to."""
    folder = tmp_path_factory.mktemp("damaged")
    tensors = original(backbone(depth=1))
    torch.save({"model": tensors}, folder / "zip.pth")
    torch.save({"model": tensors}, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(tensors, folder / "w.safetensors")
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


@given(
    name=st.sampled_from(["zip.pth", "old.pth", "w.safetensors"]),
    places=st.lists(st.integers(0, 1 << 20), max_size=4),
    values=st.binary(min_size=4, max_size=4),
    cut=st.sampled_from([0, 0, 1, 50, 3000]),
)
def test_damage_anywhere_is_read_or_refused(small_files, name, places, values, cut):
    folder, contents = small_files
    (folder / name).write_bytes(damaged(contents[name], places, values, cut))
    try:
        load_backbone_weights(backbone(depth=1), folder / name)
    except UserError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


def test_a_text_that_begins_as_a_pickle_might_is_no_weight_file(tmp_path):
    # "j" and four bytes are a pickle's reference to a number that nothing has.
    (tmp_path / "junk.pth").write_text("junk\n")
    with pytest.raises(WeightsError, match="neither torch"):
        read_weight_file(tmp_path / "junk.pth")
