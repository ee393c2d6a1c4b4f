import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gistjax.compress.parameters import export_trainable, import_trainable, split_model, start_from
from gistjax.config import EncoderConfig, LoraConfig, MeshConfig, OptimizerConfig
from gistjax.errors import CheckpointError, StorageError
from gistjax.runtime.sharding import make_mesh, shardings_of
from gistjax.runtime.tensors import load_tensors, save_tensors
from gistjax.training import checkpoint
from gistjax.training.checkpoint import Checkpointer
from gistjax.training.manifest import check_manifest
from gistjax.training.optimizer import make_optimizer
from gistjax.training.step import init_state
from tests.helpers.tiny import tiny_model


def state_of(name="gist", mesh=None, seed=1):
    """A state in the middle of a training: each leaf has its own values, moments and counts too."""
    mesh = mesh or make_mesh(MeshConfig())
    _, trainable, _ = split_model(tiny_model(name, seed=seed))
    trainable = jax.device_put(trainable, shardings_of(trainable, mesh))
    state = init_state(trainable, make_optimizer(OptimizerConfig(), 10, trainable), mesh)
    rng = np.random.default_rng(seed)

    def busy(leaf):
        new = (
            rng.integers(1, 9999, leaf.shape) if leaf.dtype == np.int32 else rng.random(leaf.shape)
        )
        return jax.device_put(new.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(busy, state)


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    folder, state = tmp_path_factory.mktemp("saved") / "checkpoint", state_of()
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(3, state)
    return folder, state


@pytest.fixture
def saved(saved_once, tmp_path):
    folder, state = saved_once
    return shutil.copytree(folder, tmp_path / "checkpoint"), state


def test_what_was_saved_is_restored(saved):
    folder, state = saved
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.latest_step == 3
        assert_equal(checkpointer.restore(state_of(seed=2)), state)


def test_a_checkpoint_of_0_1_is_restored(tmp_path, monkeypatch):
    """What is under test was called a head, in parameters and in the optimizer's moments."""
    state = state_of()
    today = checkpoint._name
    with monkeypatch.context() as patch, Checkpointer(tmp_path / "checkpoint") as checkpointer:
        patch.setattr(
            checkpoint, "_name", lambda path: today(path).replace(".architecture.", ".head.")
        )
        checkpointer.save(3, state)
    assert b"compressor.head." in (tmp_path / "checkpoint/3/_METADATA").read_bytes()
    assert_equal(restored(tmp_path / "checkpoint"), state)


def test_restoring_onto_another_layout(saved):
    folder, state = saved
    other = state_of(mesh=make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), seed=2)
    with Checkpointer(folder) as checkpointer:
        restored = checkpointer.restore(other)
    assert_equal(restored, state)
    for leaf, like in zip(jax.tree.leaves(restored), jax.tree.leaves(other), strict=True):
        assert leaf.sharding == like.sharding


@pytest.mark.parametrize(
    "notes",
    [
        """[os_error_code='5'] [tensorstore_spec='{"create": true}']""",
        """[tensorstore_spec='{"create": true}'] [os_error_code='5']""",
    ],
)
def test_a_failed_save_names_the_system_s_error(notes, tmp_path, monkeypatch):
    """tensorstore hangs its notes on in any order."""

    def fail(*_):
        raise ValueError(f'UNKNOWN: Error opening "zarr" driver: Failed to fsync: I/O {notes}')

    with Checkpointer(tmp_path / "checkpoint") as checkpointer:
        monkeypatch.setattr(checkpointer._orbax, "save", fail)
        with pytest.raises(
            StorageError, match="cannot save step 3 .*: Input/output error. There, no step"
        ):
            checkpointer.save(3, state_of())


def test_a_fresh_directory_has_no_step(tmp_path):
    with Checkpointer(tmp_path / "checkpoint") as checkpointer:
        assert checkpointer.latest_step is None


def test_the_newest_two_are_kept(tmp_path):
    state = state_of()
    with Checkpointer(tmp_path / "checkpoint") as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, state)
    assert sorted(p.name for p in (tmp_path / "checkpoint").iterdir() if p.name.isdigit()) == [
        "2",
        "3",
    ]


def test_another_architectures_checkpoint_is_refused(saved):
    with Checkpointer(saved[0]) as checkpointer, pytest.raises(CheckpointError, match="--workdir"):
        checkpointer.restore(state_of("conv"))


def test_missing_parts_are_an_error_and_not_a_fresh_start(saved):
    folder, _ = saved
    for path in sorted((folder / "3").rglob("d")):
        shutil.rmtree(path)
    with (
        Checkpointer(folder) as checkpointer,
        pytest.raises(CheckpointError, match="3/d/.*no other step"),
    ):
        checkpointer.restore(state_of())


@pytest.fixture
def saved_twice(tmp_path):
    states = {step: state_of(seed=step) for step in (3, 6)}
    with Checkpointer(tmp_path / "checkpoint") as checkpointer:
        for step, state in states.items():
            checkpointer.save(step, state)
    return tmp_path / "checkpoint", states


def restored(folder):
    with Checkpointer(folder) as checkpointer:
        return checkpointer.restore(state_of(seed=9))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.json", "_METADATA", "d/*", "ocdbt.process_0/d/*"])
def test_a_damaged_step_is_named_and_set_aside_and_the_one_before_is_taken(
    name, saved_twice, caplog
):
    folder, states = saved_twice
    file = next((folder / "6").glob(name))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    assert_equal(restored(folder), states[3])
    assert str(folder / "6") in caplog.text and "step 3" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["3", "6.damaged"]


@pytest.mark.slow
def test_a_step_can_be_saved_again_where_it_was_damaged(saved_twice):
    folder, states = saved_twice
    (folder / "6" / "manifest.json").unlink()
    with Checkpointer(folder) as checkpointer:
        checkpointer.restore(states[3])
        checkpointer.save(6, states[6])
    assert_equal(restored(folder), states[6])


@pytest.mark.slow
def test_what_an_interrupted_save_left_is_removed_and_not_taken_for_a_step(saved_twice, caplog):
    folder, states = saved_twice
    shutil.copytree(folder / "3", folder / "unfinished" / "9")
    assert_equal(restored(folder), states[6])
    assert "interrupted save" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["3", "6"]


@pytest.mark.slow
def test_a_stray_file_that_orbax_would_read_is_moved_out_and_nothing_is_lost(saved_twice, caplog):
    folder, states = saved_twice
    stray = folder / "6" / "array_metadatas" / "process_0.tmp"
    stray.write_bytes(b"\x82\x01\xfd")
    assert_equal(restored(folder), states[6])
    assert str(stray) in caplog.text and not stray.exists()
    assert (folder / "strays/6/array_metadatas/process_0.tmp").read_bytes() == b"\x82\x01\xfd"
    stray.symlink_to("nowhere")  # a second one of the name, and no file
    restored(folder)
    assert (folder / "strays/6/array_metadatas/process_0.tmp_").is_symlink()


def test_a_save_that_fails_leaves_the_step_before_and_says_so(saved, monkeypatch):
    folder, state = saved

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gistjax.training.checkpoint.write_manifest", full)
    message = r"step 6.*No space left.*step 3 is intact"
    with pytest.raises(StorageError, match=message), Checkpointer(folder) as checkpointer:
        checkpointer.save(6, state)
    assert_equal(restored(folder), state)
    assert [path.name for path in folder.iterdir()] == ["3"]


def test_a_manifest_cannot_lead_out_of_its_folder(saved):
    folder, _ = saved
    for name in ("../../secret", "/etc/passwd", "a/../../../secret"):
        (folder / "3" / "manifest.json").write_text(json.dumps({name: "0" * 64}))
        with pytest.raises(CheckpointError, match="no list of files in its folder"):
            check_manifest(folder / "3")


def test_export_and_import(tmp_path):
    trainable = state_of().trainable
    export_trainable(trainable, tmp_path / "c.safetensors", {"format": "gistjax"})
    other = state_of(seed=2).trainable
    assert_equal(import_trainable(tmp_path / "c.safetensors", other), trainable)


def test_an_export_of_another_architecture_names_what_does_not_fit(tmp_path):
    export_trainable(state_of("conv").trainable, tmp_path / "c.safetensors", {})
    with pytest.raises(CheckpointError, match=r"compressor/architecture/.* is missing"):
        import_trainable(tmp_path / "c.safetensors", state_of().trainable)


def test_a_missing_export(tmp_path):
    with pytest.raises(CheckpointError, match="cannot read"):
        import_trainable(tmp_path / "none.safetensors", state_of().trainable)


def exported(folder, name, **changes):
    _, trainable, _ = split_model(tiny_model(name, seed=5, **changes))
    metadata = {"config": json.dumps({"architecture": name})}
    export_trainable(trainable, folder / "compressor.safetensors", metadata)
    return trainable


def test_a_stage_starts_from_the_one_before(tmp_path):
    earlier = exported(tmp_path, "pooling")
    _, fresh, _ = split_model(tiny_model("pooling", seed=6))
    assert_equal(start_from(tmp_path, fresh, "pooling"), earlier)
    assert_equal(start_from(tmp_path / "compressor.safetensors", fresh, "pooling"), earlier)


def shapes_of(trainable):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), trainable
    )


@pytest.mark.parametrize("name, made", [("pooling", 0), ("conv", 1)])
def test_leaves_are_made_only_where_the_file_lacks_some(tmp_path, name, made):
    exported(tmp_path, "pooling")
    _, fresh, _ = split_model(tiny_model(name, seed=6))
    makes = []

    def make():
        makes.append(1)
        return fresh

    started = start_from(tmp_path, shapes_of(fresh), name, make)
    assert_equal(started, start_from(tmp_path, fresh, name))
    assert len(makes) == made


def test_another_head_starts_fresh_behind_its_gate(tmp_path, caplog):
    caplog.set_level("INFO")
    gated = {"slot_start": "window_means"}
    earlier = exported(tmp_path, "pooling", **gated)
    earlier.compressor.gate[...] = earlier.compressor.gate[...] + 1
    export_trainable(
        earlier, tmp_path / "compressor.safetensors", {"config": '{"architecture": "pooling"}'}
    )
    _, fresh, _ = split_model(tiny_model("conv", seed=6, **gated))
    started = start_from(tmp_path, fresh, "conv")
    assert_equal(started.lora, earlier.lora)
    assert_equal(started.compressor, fresh.compressor)
    assert "that this architecture adds begin anew (compressor/architecture/" in caplog.text
    _, same, _ = split_model(tiny_model("pooling", seed=6, **gated))
    assert_equal(start_from(tmp_path, same, "pooling").compressor, earlier.compressor)


def test_a_convolution_keeps_its_kernel_at_another_ratio(tmp_path):
    earlier = exported(tmp_path, "conv", ratio=2.0).compressor.architecture.kernel[...]
    _, fresh, _ = split_model(tiny_model("conv", seed=6, ratio=8.0))
    kernel = start_from(tmp_path, fresh, "conv").compressor.architecture.kernel[...]
    assert earlier.shape[0] == 1 and kernel.shape[0] == 7
    chex.assert_trees_all_close(kernel, jnp.broadcast_to(earlier / 7, kernel.shape), rtol=1e-6)


def test_a_convolution_without_a_kernel_does_not_fit(tmp_path):
    earlier = exported(tmp_path, "conv")
    earlier.compressor.architecture.kernel = nnx.Param(
        earlier.compressor.architecture.kernel[...][:0]
    )
    export_trainable(earlier, tmp_path / "compressor.safetensors", {})
    with pytest.raises(CheckpointError, match="has shape \\(0, 32\\)"):
        start_from(tmp_path, split_model(tiny_model("conv"))[1], "conv")


def test_a_stage_that_would_be_left_behind_in_part_is_refused(tmp_path):
    exported(tmp_path, "pooling", encoder=EncoderConfig(kind="lora", lora=LoraConfig(rank=2)))
    fewer = tiny_model("pooling", lora=LoraConfig(rank=2, targets=("q", "v")))
    with pytest.raises(CheckpointError, match="no place for compressor/encoder.*lora/adapters/up"):
        start_from(tmp_path, split_model(fewer)[1], "pooling")
    control = split_model(tiny_model("none"))[1]
    start_from(tmp_path, control, "none")  # which has no encoder


def test_fewer_slots_take_the_first_queries(tmp_path):
    earlier = exported(tmp_path, "gist", target_length=8)
    _, fresh, _ = split_model(tiny_model("gist", seed=6))
    started = start_from(tmp_path, fresh, "gist")
    assert_equal(start_from(tmp_path, shapes_of(fresh), "gist", lambda: fresh), started)
    np.testing.assert_array_equal(
        started.compressor.architecture.queries[...], earlier.compressor.architecture.queries[:4]
    )


def test_a_compressor_of_0_1_is_read(tmp_path):
    earlier = exported(tmp_path, "gist")
    file = tmp_path / "compressor.safetensors"
    arrays, _ = load_tensors(file)
    old = {name.replace("/architecture/", "/head/"): array for name, array in arrays.items()}
    assert old.keys() != arrays.keys()
    save_tensors(file, old, {"config": '{"architecture": "gist"}'})
    _, fresh, _ = split_model(tiny_model("gist", seed=6))
    assert_equal(import_trainable(file, fresh), earlier)
    assert_equal(start_from(file, fresh, "gist"), earlier)


def test_half_precision_is_read_as_single(tmp_path):
    earlier = exported(tmp_path, "pooling")
    half = jax.tree.map(lambda x: x.astype(np.float16), earlier)
    export_trainable(half, tmp_path / "compressor.safetensors", {})
    _, fresh, _ = split_model(tiny_model("pooling", seed=6))
    for read in (
        start_from(tmp_path, fresh, "pooling"),
        import_trainable(tmp_path / "compressor.safetensors", fresh),
    ):
        assert_equal(read, jax.tree.map(lambda x: x.astype(np.float32), half))


def test_a_stage_that_does_not_fit_or_is_not_there_is_refused(tmp_path):
    exported(tmp_path, "pooling", lora=LoraConfig(rank=3))
    _, fresh, _ = split_model(tiny_model("pooling"))
    with pytest.raises(CheckpointError, match="lora/adapters/.* has shape"):
        start_from(tmp_path, fresh, "pooling")
    with pytest.raises(CheckpointError, match="nowhere"):
        start_from(tmp_path / "nowhere", fresh, "pooling")
    export_trainable({"other": np.zeros(3)}, tmp_path / "compressor.safetensors", {})
    with pytest.raises(CheckpointError, match="no parameter of this configuration"):
        start_from(tmp_path, fresh, "pooling")
