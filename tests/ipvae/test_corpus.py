"""Data sets on disk to sparse codes on disk: any file, any split, any interruption, the same bytes."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import IGVAE, IPVAE, IGVAEConfig, IPVAEConfig, cli, encode
from ipvae.corpus import ColumnEncoder, Encoding, encode_corpus, open_rows, read_codes
from ipvae.fields import ConfigError
from safetensors.torch import save_file
from typer.testing import CliRunner

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N, M, K, STEPS = 53, 12, 9, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = IPVAEConfig(n_inputs=M, n_latents=K, init_scale=0.2, init_log_rate=(-1.0, 0.5))
    folder = tmp_path_factory.mktemp("model")
    IPVAE(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(N, M, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def npy(x: torch.Tensor, tmp_path: Path) -> Path:
    path = tmp_path / "x.npy"
    np.save(path, x.numpy())
    return path


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def written(kind: str, x: torch.Tensor, folder: Path) -> tuple[Path, str | None]:
    """The inputs in files of a kind, in three of them where it is a folder; and the key."""
    folder.mkdir()
    thirds = x.tensor_split(3)
    if kind == "npy folder":
        for i, part in enumerate(thirds):
            np.save(folder / f"{i}.npy", part.numpy())
    elif kind == "images":
        np.save(folder / "x.npy", x.reshape(N, 3, 4).numpy())
        return folder / "x.npy", None
    elif kind == "safetensors":
        for i, part in enumerate(thirds):
            save_file({"acts": part.contiguous(), "other": part[:1].clone()}, folder / f"{i}.safetensors")
        return folder, "acts"
    elif kind == "lists":
        for i, part in enumerate(thirds):
            table = pa.table({"x": list(part.numpy()), "name": ["row"] * len(part)})
            pq.write_table(table, folder / f"{i}.parquet", row_group_size=4)
        return folder, "x"
    elif kind == "fixed lists":
        column = pa.FixedSizeListArray.from_arrays(pa.array(x.numpy().ravel()), M)
        pq.write_table(pa.table({"x": column}), folder / "x.parquet", row_group_size=10)
    else:
        pq.write_table(pa.table({f"c{i}": x[:, i].numpy() for i in range(M)}), folder / "x.parquet")
    return folder, None


KINDS = ["npy folder", "images", "safetensors", "lists", "fixed lists", "columns"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_any_file(kind: str, x: torch.Tensor, tmp_path: Path) -> None:
    path, key = written(kind, x, tmp_path / "data")
    rows = open_rows(path, key=key)
    assert (rows.n, rows.width) == (N, M)
    for start, stop in ((0, N), (0, 1), (N - 1, N), (5, 41), (17, 19)):
        assert torch.equal(rows.read(start, stop), x[start:stop])
    again = pickle.loads(pickle.dumps(rows))
    assert torch.equal(again.read(3, 50), x[3:50])
    assert open_rows(path, key=key).digest == rows.digest
    for start, stop in ((-1, 3), (4, 4), (0, N + 1)):
        with pytest.raises(IndexError, match=f"start, stop: expected 0 <= start < stop <= {N}"):
            rows.read(start, stop)


def test_rows_of_bytes_and_of_half_precision(x: torch.Tensor, tmp_path: Path) -> None:
    images = (255 * x).round().to(torch.uint8)
    np.save(tmp_path / "x.npy", images.numpy())
    assert torch.equal(open_rows(tmp_path / "x.npy").read(0, N), images / 255.0)
    save_file({"x": x.bfloat16()}, tmp_path / "x.safetensors")
    assert torch.equal(open_rows(tmp_path / "x.safetensors").read(2, 9), x.bfloat16()[2:9].float())


def test_a_named_set_is_taken_whole() -> None:
    assert (open_rows("digits").n, open_rows("digits").width) == (1797, 64)


@pytest.mark.parametrize("part_rows", [7, 20, 100])
def test_codes_are_those_of_encode(
    model: Path, npy: Path, x: torch.Tensor, tmp_path: Path, part_rows: int
) -> None:
    out = tmp_path / "codes"
    plan = encode_corpus(model, npy, out, steps=STEPS, seed=3, part_rows=part_rows, batch_size=5)
    assert plan.parts == -(-N // part_rows)
    expected = encode(model, x, STEPS, counts=True, seed=3)
    codes = read_codes(out)
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(codes.toarray(), expected.numpy())
    table = pq.read_table(out)  # as any reader of a folder does
    assert table.column_names == ["index", "neurons", "values"]
    assert table["index"].to_pylist() == list(range(N))


def test_averages_and_gaussian_latents_are_floating_point(npy: Path, x: torch.Tensor, tmp_path: Path) -> None:
    IGVAE(IGVAEConfig(n_inputs=M, n_latents=K)).save_pretrained(tmp_path / "model")
    encode_corpus(tmp_path / "model", npy, tmp_path / "codes", steps=STEPS, last=2, part_rows=30)
    expected = encode(tmp_path / "model", x, STEPS, last=2, counts=True, seed=0)
    np.testing.assert_array_equal(read_codes(tmp_path / "codes").toarray(), expected.numpy())


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_and_batches_change_nothing(model: Path, npy: Path, tmp_path: Path, workers: int) -> None:
    encode_corpus(model, npy, tmp_path / "one", steps=STEPS, part_rows=6)
    encode_corpus(model, npy, tmp_path / "many", steps=STEPS, part_rows=6, workers=workers, batch_size=4)
    assert files(tmp_path / "one") == files(tmp_path / "many")


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_killed_anywhere_it_goes_on_to_the_same_files(
    model: Path, npy: Path, tmp_path: Path, workers: int
) -> None:
    """SIGKILL of all processes after some files; what is damaged or half there is made anew."""
    encode_corpus(model, npy, tmp_path / "whole", steps=STEPS, part_rows=1)
    out = tmp_path / "cut"
    arguments = ["encode", str(model), str(npy), "--out", str(out), "--steps", str(STEPS)]
    arguments += ["--part-rows", "1", "--workers", str(workers), "--threads", "1"]
    command = subprocess.Popen([sys.executable, "-m", "ipvae", *arguments], start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(out.glob("part-*"))) < 5 and command.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(command.pid, signal.SIGKILL)
    command.wait()
    found = sorted(out.glob("part-*.parquet"))
    assert found
    found[0].write_bytes(found[0].read_bytes()[:-3])
    (out / "_part-00001.sha256").unlink(missing_ok=True)
    plan = Encoding.begin(model, npy, out, steps=STEPS, part_rows=1)
    assert {int(found[0].stem[5:]), 1} <= set(plan.missing())
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0
    assert f"{N} rows, {N} files" in result.output
    assert files(tmp_path / "whole") == {n: h for n, h in files(out).items() if not n.startswith(".")}


def test_neurons_in_two_processes(model: Path, npy: Path, tmp_path: Path) -> None:
    """The codes of one process but for draws within rounding of a threshold; and the same command goes on."""
    out = tmp_path / "two"
    arguments = ["encode", str(model), str(npy), "--out", str(out), "--steps", str(STEPS)]
    arguments += ["--part-rows", "20", "--shard-neurons", "2"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    encode_corpus(model, npy, tmp_path / "one", steps=STEPS, part_rows=20)
    one, two = (read_codes(folder).toarray() for folder in (tmp_path / "one", out))
    assert (one != two).mean() < 0.01
    whole = files(out)
    (out / "part-00001.parquet").unlink()
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    assert files(out) == whole
    with pytest.raises(FileExistsError, match="shard_neurons 2, not 1"):
        encode_corpus(model, npy, out, steps=STEPS, part_rows=20)
    with pytest.raises(ValueError, match="workers: expected 1 beside shard_neurons, found 2"):
        encode_corpus(model, npy, tmp_path / "other", workers=2, shard_neurons=2)
    with pytest.raises(ValueError, match="expected at least 4 neurons for each of 4 processes, found 9"):
        encode_corpus(model, npy, tmp_path / "many", shard_neurons=4)
    curved = IPVAE(IPVAEConfig(n_inputs=M, n_latents=K, decoder="mlp"))
    curved.save_pretrained(tmp_path / "curved")
    with pytest.raises(ConfigError, match="shard_neurons: expected an iterative model"):
        encode_corpus(tmp_path / "curved", npy, tmp_path / "c", shard_neurons=2)


def test_what_is_finished_is_left_alone(model: Path, npy: Path, tmp_path: Path) -> None:
    plan = encode_corpus(model, npy, tmp_path / "codes", steps=STEPS, part_rows=20)
    times = [plan.path(part).stat().st_mtime_ns for part in range(plan.parts)]
    again = encode_corpus(model, npy, tmp_path / "codes", steps=STEPS, part_rows=20)
    assert again == plan
    assert [plan.path(part).stat().st_mtime_ns for part in range(plan.parts)] == times


# --- columns ---


def dense(columns: dict[str, Any]) -> np.ndarray:
    found = np.zeros((len(columns["index"]), K))
    for row, (neurons, values) in enumerate(zip(columns["neurons"], columns["values"], strict=True)):
        found[row, neurons] = values
    return found


def test_columns_in_any_order_and_split(model: Path, x: torch.Tensor) -> None:
    """An engine may shuffle, split and retry: a row's code is that of its place."""
    expected = encode(model, x, STEPS, counts=True, seed=3).numpy()
    encoder = pickle.loads(pickle.dumps(ColumnEncoder(model, steps=STEPS, seed=3, batch_size=4)))
    order = np.random.default_rng(0).permutation(N)
    for places in (np.arange(N), order[:20], order[20:], np.arange(10, 30), order[:0]):
        columns = encoder({"x": x[places].numpy(), "index": places, "label": places})
        assert set(columns) == {"index", "neurons", "values"}
        np.testing.assert_array_equal(dense(columns), expected[places])
    lists = encoder({"x": x[:5].tolist(), "index": list(range(5))})
    np.testing.assert_array_equal(dense(lists), expected[:5])


def test_a_local_ray_cluster(model: Path, npy: Path, x: torch.Tensor, tmp_path: Path) -> None:
    """Two workers: columns by `map_batches`, and parts of an `Encoding` to the files of one process.

    In an interpreter of its own: Ray's threads outlive its end, and the tests after this one fork.
    """
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    command = [sys.executable, __file__, str(model), str(npy), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          start_new_session=True) as process:  # fmt: skip
        try:
            said = process.communicate(timeout=240)[0]
        finally:
            with suppress(ProcessLookupError):  # with the workers of a cluster that hangs
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
    columns = torch.load(tmp_path / "columns.pt", weights_only=False)
    expected = encode(model, x, STEPS, counts=True, seed=3).numpy()
    np.testing.assert_array_equal(dense(columns), expected)
    encode_corpus(model, npy, tmp_path / "one", steps=STEPS, part_rows=9)
    assert files(tmp_path / "ray") == files(tmp_path / "one")


def on_ray(model: str, npy: str, folder: Path) -> None:
    """What a user's script does; leaves the columns and the files in a folder."""
    import ray

    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"x": row, "index": i} for i, row in enumerate(np.load(npy))]
    data = ray.data.from_items(rows, override_num_blocks=5).map_batches(
        ColumnEncoder, fn_constructor_args=[model], fn_constructor_kwargs={"steps": STEPS, "seed": 3},
        batch_size=7, batch_format="numpy", compute=ray.data.ActorPoolStrategy(size=2),
    )  # fmt: skip
    found = sorted(data.take_all(), key=lambda row: row["index"])
    torch.save({name: [row[name] for row in found] for name in found[0]}, folder / "columns.pt")
    plan = Encoding.begin(model, npy, folder / "ray", steps=STEPS, part_rows=9)
    parts = ray.data.from_items(plan.missing(), override_num_blocks=plan.parts)
    assert parts.map(lambda row: {"rows": plan.encode(row["item"])}).sum("rows") == len(rows)
    ray.shutdown()


# --- bad input ---


def test_other_codes_are_not_mixed(model: Path, npy: Path, x: torch.Tensor, tmp_path: Path) -> None:
    out = tmp_path / "codes"
    encode_corpus(model, npy, out, steps=STEPS, part_rows=20)
    for other, named in (({"seed": 1}, "seed 0, not 1"), ({"part_rows": 30}, "part_rows 20, not 30")):
        with pytest.raises(FileExistsError, match=f"{named}.*; give another folder"):
            encode_corpus(model, npy, out, **{"steps": STEPS, "part_rows": 20, **other})
    plan = Encoding.begin(model, npy, out, steps=STEPS, part_rows=20)
    np.save(npy, x.flip(0).numpy())
    with pytest.raises(RuntimeError, match=r"data: .*x.npy has changed since the encoding began"):
        plan.encode(0)
    with pytest.raises(FileExistsError, match="data_digest"):
        Encoding.begin(model, npy, out, steps=STEPS, part_rows=20)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.parquet").write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"holds mine.parquet, which is of something else"):
        encode_corpus(model, npy, tmp_path / "own")


def test_a_model_that_changes_is_noticed(npy: Path, tmp_path: Path) -> None:
    config = IPVAEConfig(n_inputs=M, n_latents=K)
    IPVAE(config).save_pretrained(tmp_path / "model")
    plan = Encoding.begin(tmp_path / "model", npy, tmp_path / "codes", steps=STEPS)
    net = IPVAE(config)
    with torch.no_grad():
        net.dictionary.add_(0.1)
    net.save_pretrained(tmp_path / "model")
    with pytest.raises(RuntimeError, match=r"model: .* has changed since the encoding began"):
        plan.encode(0)


def test_codes_that_are_not_all_there_are_refused(model: Path, npy: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="folder: no codes in"):
        read_codes(tmp_path)
    plan = encode_corpus(model, npy, tmp_path / "codes", steps=STEPS, part_rows=20)
    plan.path(1).unlink()
    with pytest.raises(ValueError, match="lacks 1 of 3 parts, such as 1"):
        read_codes(tmp_path / "codes")


def test_bad_files(model: Path, x: torch.Tensor, tmp_path: Path) -> None:
    def raises(match: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            open_rows(*arguments, **options)

    (tmp_path / "broken.npy").write_bytes(b"no array")
    raises("broken.npy: not a .npy file that can be read", tmp_path / "broken.npy")
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    raises("broken.safetensors: not a .safetensors file that can be read", tmp_path / "broken.safetensors")
    (tmp_path / "broken.parquet").write_bytes(b"x")
    raises("broken.parquet: not a .parquet file that can be read", tmp_path / "broken.parquet")
    raises("expected files of one kind, found .npy, .parquet, .safetensors", tmp_path)
    np.save(tmp_path / "whole.npy", np.arange(6).reshape(2, 3))
    raises("expected floating point numbers or bytes, found int64", tmp_path / "whole.npy")
    np.save(tmp_path / "flat.npy", np.zeros(4))
    raises(r"expected \[N, M\] or images, none of them 0, found \[4\]", tmp_path / "flat.npy")
    save_file({"a": x, "b": x.clone()}, tmp_path / "two.safetensors")
    raises("which tensor\\? Give key, one of a, b", tmp_path / "two.safetensors")
    raises("key: expected one of a, b, found 'c'", tmp_path / "two.safetensors", key="c")
    pq.write_table(pa.table({"x": [[1.0], [1.0, 2.0]]}), tmp_path / "ragged.parquet")
    raises("expected lists of one length in 'x'", tmp_path / "ragged.parquet")
    pq.write_table(pa.table({"x": ["a"]}), tmp_path / "text.parquet")
    raises("expected floating point numbers or bytes, found (object|str)", tmp_path / "text.parquet")
    folder = tmp_path / "widths"
    folder.mkdir()
    for width in (2, 3):
        np.save(folder / f"{width}.npy", np.zeros((4, width)))
    raises(r"expected rows of one length, found \[2, 3\]", folder)
    raises("no such|expected one of", tmp_path / "nothing.npy")


def test_bad_calls(model: Path, npy: Path, x: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model: expected a path that workers load it from"):
        ColumnEncoder(IPVAE(IPVAEConfig(n_inputs=M, n_latents=K)))  # type: ignore[arg-type]
    np.save(tmp_path / "wide.npy", np.zeros((3, M + 1)))
    with pytest.raises(ValueError, match=f"has rows of {M + 1} numbers, .* takes {M}"):
        encode_corpus(model, tmp_path / "wide.npy", tmp_path / "codes")
    assert not (tmp_path / "codes").exists()
    with pytest.raises(ValueError, match="workers"):
        encode_corpus(model, npy, tmp_path / "codes", workers=0)
    encoder = ColumnEncoder(model, steps=STEPS)
    with pytest.raises(KeyError, match="expected columns 'x' and 'index'"):
        encoder({"x": x.numpy()})
    with pytest.raises(ValueError, match="index: expected whole numbers"):
        encoder({"x": x.numpy(), "index": np.linspace(0, 1, N)})
    result = CliRunner().invoke(cli.app, ["encode", str(model), str(tmp_path / "wide.npy"), "--out", "codes"])
    assert result.exit_code == 2
    assert "has rows of" in result.stderr


if __name__ == "__main__":
    on_ray(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
