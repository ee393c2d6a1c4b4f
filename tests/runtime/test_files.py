import os

import pytest

from gistjax.errors import StorageError
from gistjax.runtime.files import (
    check_writable,
    is_file,
    make_folder,
    to_json,
    write_atomically,
    write_json,
)


def test_a_file_is_written_and_written_over(tmp_path):
    for content in (b"one", b"two"):
        write_atomically(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert os.listdir(tmp_path) == ["file"], "no temporary file is left"


def test_json_is_as_every_reader_takes_it(tmp_path):
    value = {"a": [1.5, float("nan")], "b": {"c": (float("inf"), "é", None)}, "d": -float("inf")}
    assert to_json(value) == '{"a": [1.5, null], "b": {"c": [null, "é", null]}, "d": null}'
    write_json(tmp_path / "file", value)
    with pytest.raises(TypeError):
        write_json(tmp_path / "file", {"a": object()})
    assert (tmp_path / "file").read_text().startswith('{\n  "a": [\n    1.5,\n    null'), "it stays"


def test_what_a_link_points_to_stays(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to("target")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_text() == "mine"
    assert (tmp_path / "link").read_bytes() == b"new" and not (tmp_path / "link").is_symlink()


def test_folders_devices_and_pipes_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    for name, kind in (("pipe", "device or pipe"), ("device", "device or pipe"), (".", "folder")):
        with pytest.raises(StorageError, match=f"it is a {kind}"):
            write_atomically(tmp_path / name, b"")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "device").is_symlink()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StorageError, match=f"there is no folder {tmp_path}/none"):
        check_writable(tmp_path / "none" / "file")


def test_what_can_be_no_name(tmp_path):
    with pytest.raises(StorageError, match="name too long"):
        check_writable(tmp_path / ("a" * 300))
    assert not is_file("Ada wrote it. " * 30)


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda folder, mode: False)  # root may everywhere
    with pytest.raises(StorageError, match="may not be written to"):
        check_writable(tmp_path / "file")


def test_a_folder_that_cannot_be_made(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    for path in ("file", "file/below"):
        with pytest.raises(StorageError, match="cannot be made"):
            make_folder(tmp_path / path)
