"""EDM files and training checkpoints with well-formed containers and nonsense inside: each is a
message that names the file, quickly, and without a network being built or memory being filled.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from edm_pickles import SIZE, SONG, Persistent, content, tiny_network, tree, write
from safetensors.torch import save_file
from slowly import few

from ld3_dist.core.errors import InputError
from ld3_dist.models import ModelOptions, open_model
from ld3_dist.models.edm.opening import convert
from ld3_dist.models.torch_files import read_tensors_of

PLAIN = {**SONG, **SIZE}


def refusal(file: Path) -> str:
    with pytest.raises(InputError) as error:
        open_model(f"edm:{file}")
    assert str(file) in str(error.value)
    with pytest.raises(InputError):
        convert(file, file.with_name("out.safetensors"))
    assert not file.with_name("out.safetensors").exists()
    return str(error.value)


ARGUMENTS: list[tuple[str, Any]] = [
    ("img_resolution", "8"),
    ("img_resolution", 10**12),
    ("img_resolution", True),
    ("img_resolution", -8),
    ("img_resolution", [8]),
    ("img_channels", 3.0),
    ("img_channels", 10**9),
    ("model_channels", "8"),
    ("model_channels", 0),
    ("model_channels", 10**9),
    ("model_channels", 6),
    ("channel_mult", 2),
    ("channel_mult", []),
    ("channel_mult", ["1"]),
    ("channel_mult", [1] * 1000),
    ("channel_mult", [-1, 1]),
    ("channel_mult", {"a": 1}),
    ("num_blocks", 10**9),
    ("num_blocks", 900),
    ("num_blocks", None),
    ("num_blocks", 1.5),
    ("attn_resolutions", 4),
    ("attn_resolutions", ["4"]),
    ("resample_filter", []),
    ("resample_filter", [0, 0]),
    ("resample_filter", "11"),
    ("embedding_type", ["positional"]),
    ("embedding_type", 5),
    ("encoder_type", None),
    ("label_dim", -1),
    ("label_dim", 10**12),
    ("label_dim", "ten"),
    ("augment_dim", 2.5),
    ("channel_mult_emb", 0),
    ("channel_mult_noise", "x"),
    ("model_type", ["SongUNet"]),
    ("model_type", None),
    ("sigma_min", "small"),
    ("sigma_min", None),
    ("sigma_min", 90.0),
    ("sigma_max", -1),
    ("sigma_max", float("nan")),
    ("sigma_data", [0.5]),
    ("dropout", {"a": 1}),
    ("use_fp16", "yes"),
]


@pytest.mark.parametrize(("key", "value"), ARGUMENTS)
@pytest.mark.parametrize("suffix", few(["pkl", "safetensors"], ["pkl"]))
@pytest.mark.siblings(6)
def test_arguments_of_any_kind(
    tmp_path: Path, format_modules: None, key: str, value: Any, suffix: str
) -> None:
    net, given = tiny_network("EDMPrecond", PLAIN), {**PLAIN, key: value}
    file = tmp_path / f"net.{suffix}"
    if suffix == "pkl":
        file.write_bytes(pickle.dumps(content(net, "EDMPrecond", given)))
    else:
        header = {"class_name": "EDMPrecond", "arguments": given}
        told = json.dumps({"kind": "edm", "config": header})
        tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
        save_file(tensors, file, {"ld3_dist": told})
    said = refusal(file)
    if key not in ("model_channels", "img_resolution", "img_channels", "sigma_min", "sigma_max"):
        assert key in said


@pytest.mark.parametrize("key", ["beta_d", "beta_min", "M"])
@pytest.mark.parametrize("value", ["x", None, -1.0, float("nan"), [1]])
@pytest.mark.siblings(4)
def test_arguments_of_the_process(
    tmp_path: Path, format_modules: None, key: str, value: Any
) -> None:
    net = tiny_network("VPPrecond", PLAIN)
    file = tmp_path / "net.pkl"
    file.write_bytes(pickle.dumps(content(net, "VPPrecond", {**PLAIN, key: value})))
    assert key in refusal(file)


HEADERS: list[Any] = [
    {},
    {"kind": "edm"},
    {"kind": "edm", "config": None},
    {"kind": "edm", "config": 3},
    {"kind": "edm", "config": []},
    {"kind": "edm", "config": {"class_name": "EDMPrecond"}},
    {"kind": "edm", "config": {"arguments": PLAIN}},
    {"kind": "edm", "config": {"class_name": ["EDMPrecond"], "arguments": PLAIN}},
    {"kind": "edm", "config": {"class_name": "EDMPrecond", "arguments": 3}},
    {"kind": "edm", "config": {"class_name": "EDMPrecond", "arguments": [1, 2]}},
    {"kind": "edm", "config": {"class_name": "EDMPrecond", "arguments": "abc"}},
    {"kind": ["edm"], "config": {}},
    [],
    "edm",
    None,
]


@pytest.mark.parametrize("header", HEADERS)
def test_headers_of_any_kind(tmp_path: Path, header: Any) -> None:
    file = tmp_path / "net.safetensors"
    save_file({"a": torch.zeros(1)}, file, {"ld3_dist": json.dumps(header)})
    refusal(file)


def test_modules_that_contain_themselves(tmp_path: Path, format_modules: None) -> None:
    net = tiny_network("EDMPrecond", PLAIN)
    state = {"_init_args": (), "_init_kwargs": PLAIN}
    file = tmp_path / "net.pkl"

    def dump(root: Any) -> str:
        file.write_bytes(pickle.dumps({"ema": root}))
        return refusal(file)

    root = tree(net, state, "EDMPrecond")
    inner = torch.nn.ModuleDict()
    inner._modules = {"again": inner}  # type: ignore[assignment]
    root.meta["state"]["_modules"] = {"model": inner}
    assert "without end" in dump(root)
    shared: Any = torch.nn.ModuleDict()
    for _ in range(25):  # two to the power of 25 paths through 25 modules
        level = torch.nn.ModuleDict()
        level._modules = {"a": shared, "b": shared}
        shared = level
    root.meta["state"]["_modules"] = {"model": shared}
    assert "without end" in dump(root)
    for nonsense in (3, [1], {5: torch.zeros(1)}, "x", torch.ones(2), torch.ones(0)):
        root = tree(net, state, "EDMPrecond")
        root.meta["state"]["_parameters"] = nonsense
        assert "no table of names" in dump(root)
        root = tree(net, state, "EDMPrecond")
        root.meta["state"]["_modules"] = nonsense
        if not isinstance(nonsense, dict):
            dump(root)


@pytest.mark.parametrize(
    ("positional", "named"),
    [(3, {}), ("abc", {}), ((), 3), ((), [1]), ((1, 2, 3, 4, 5), {}), (None, None), ((), {5: 1})],
)
def test_constructor_arguments_of_any_kind(
    tmp_path: Path, format_modules: None, positional: Any, named: Any
) -> None:
    net = tiny_network("EDMPrecond", PLAIN)
    state = {"_init_args": positional, "_init_kwargs": named}
    file = tmp_path / "net.pkl"
    file.write_bytes(pickle.dumps({"ema": tree(net, state, "EDMPrecond")}))
    refusal(file)


def test_roots_of_any_kind(tmp_path: Path, format_modules: None) -> None:
    file = tmp_path / "net.pkl"
    for root in (3, [], {}, {"ema": 3}, {"ema": None}, {"ema": {}}, "x", None, {3: 4, "a": 5},
                 {"ema": Persistent("EDMPrecond", {})},
                 {"ema": Persistent("", {"_init_args": (), "_init_kwargs": {}})},
                 {"ema": Persistent(["x"], {"_init_args": (), "_init_kwargs": PLAIN})}):  # type: ignore[arg-type]  # fmt: skip
        file.write_bytes(pickle.dumps(root))
        refusal(file)
    state = Persistent("EDMPrecond", {})
    state.meta = {"type": "class"}  # no class name
    file.write_bytes(pickle.dumps({"ema": state}))
    refusal(file)


BOMBS: list[tuple[str, bytes]] = [
    ("memo", b"\x80\x02]r\xff\xff\xff\xff."),  # LONG_BINPUT at four thousand million
    ("bytes", b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x."),
    ("text", b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"x."),
    ("long", b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"x."),
    ("marks", b"\x80\x02" + b"(" * 300_000 + b"."),
    ("nested", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
    ("put", b"(p99999999999\n."),
    ("digits", b"I" + b"9" * 100_000 + b"\n."),
]


@pytest.mark.parametrize(("name", "data"), BOMBS, ids=[name for name, _ in BOMBS])
def test_pickles_without_end(tmp_path: Path, name: str, data: bytes) -> None:
    file = tmp_path / "net.pkl"
    file.write_bytes(data)
    refusal(file)


def zeros_that_inflate(size: int) -> bytes:
    """A torch archive of zeros, compressed."""
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(size)}}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w") as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def test_archives_that_inflate(tmp_path: Path, format_modules: None) -> None:
    data = zeros_that_inflate(5_000_000)
    assert len(data) < 100_000
    file = tmp_path / "model.ckpt"
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"model\.ckpt: .*inflates to"):
        read_tensors_of(file)

    class Inflating:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch.storage._load_from_bytes, (data,)

    write(tmp_path / "net.pkl", PLAIN, evil=Inflating())
    assert "inflates to" in refusal(tmp_path / "net.pkl")


def test_archives_whose_files_overlap(tmp_path: Path) -> None:
    """The same bytes listed a thousand times are more than the file."""
    plain, file = io.BytesIO(), tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(10_000)}}, plain)
    with zipfile.ZipFile(plain, "a") as archive:
        part = next(p for p in archive.infolist() if "/data/" in p.filename)
        archive.filelist.extend([part] * 1000)
        archive._didModify = True  # type: ignore[attr-defined]
    file.write_bytes(plain.getvalue())
    with pytest.raises(InputError, match="inflates to"):
        read_tensors_of(file)


def test_storages_and_tensors_beyond_their_bytes(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"

    def attempt(change: Any) -> None:
        plain = io.BytesIO()
        torch.save({"state_dict": {"a": torch.arange(77.0)}}, plain)
        with zipfile.ZipFile(plain) as source, zipfile.ZipFile(file, "w") as target:
            for part in source.infolist():
                data = source.read(part)
                target.writestr(part.filename, change(part.filename, data))
        with pytest.raises(InputError, match=r"model\.ckpt: truncated, or not a checkpoint"):
            read_tensors_of(file)

    def longer(name: str, data: bytes) -> bytes:  # K 77: both the storage and the size
        return data.replace(b"KM", b"M\xff\x7f") if name.endswith("data.pkl") else data

    def storage_only(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        at = data.index(b"KM")
        return data[:at] + b"J\xff\xff\xff\x7f" + data[at + 2 :]

    def missing(name: str, data: bytes) -> bytes:
        return b"" if "/data/" in name else data

    for change in (longer, storage_only, missing):
        attempt(change)
    expanded = torch.zeros(1).expand(10**12)
    torch.save({"state_dict": {"a": expanded}}, file)
    with pytest.raises(InputError, match="reaches beyond its storage"):
        read_tensors_of(file)


def test_a_tar_archive_is_not_unpacked(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    with tarfile.open(file, "w") as archive:
        archive.add(__file__, "storages")
    with pytest.raises(InputError, match="tar archive"):
        read_tensors_of(file)


def test_checkpoints_of_today_still_load(tmp_path: Path) -> None:
    """The zip form, the older form without an archive, views, and several dtypes."""
    told = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": told, "b": told.T, "c": told[1:, 2:], "d": told.half(), "e": torch.tensor(3)}
    for new in (True, False):
        file = tmp_path / "model.ckpt"
        torch.save({"state_dict": tensors}, file, _use_new_zipfile_serialization=new)
        found = read_tensors_of(file)
        for name, value in tensors.items():
            assert torch.equal(found[name], value)


def test_options_of_pipelines_are_none_of_edm(tmp_path: Path, format_modules: None) -> None:
    write(tmp_path / "net.pkl", PLAIN)
    given = {"variant": "fp16", "size": (16, 16), "shift": 3.0, "negative_prompt": "blurry"}
    for name, value in given.items():
        with pytest.raises(InputError, match=rf"{name}=.*does not apply to it"):
            open_model(f"edm:{tmp_path / 'net.pkl'}", ModelOptions(**{name: value}))
    assert "torch_utils" in sys.modules
