"""What must hold before ranks start on a cluster, and when they stop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed: opsd[ray]", exc_type=ImportError)

from opsd.trainer.errors import ClusterError
from opsd.trainer.launch import ray_group
from opsd.trainer.launch.ends import RankEnd
from opsd.trainer.launch.ray_driver import Pool


class Workers:
    """Two workers in this process, each with a view of the file system of its own."""

    def __init__(self, *views: Path) -> None:
        self.views = views
        self.hosts = [{**ray_group.describe_host(), "host": f"host-{i}"} for i in range(len(views))]

    def __len__(self) -> int:
        return len(self.views)

    def execute(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        if function is ray_group.describe_host:
            return self.hosts
        if function is ray_group._set_rendezvous:
            return [None] * len(self)
        return [function(str(view), *arguments[1:]) for view in self.views]

    def execute_single(self, rank: int, function: Callable[..., Any]) -> Any:
        assert rank == 0
        return ("127.0.0.1", 1)


def start(workers: Workers) -> None:
    config = ray_group.RankBackendConfig(run_dir="/shared/run", nonce="n", patience_s=0.0)
    ray_group.RankBackend().on_start(workers, config)


def test_a_run_directory_that_all_share_is_left_as_it_was(tmp_path: Path) -> None:
    start(Workers(tmp_path, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_of_one_machine_alone_is_refused(tmp_path: Path) -> None:
    views = [tmp_path / "a", tmp_path / "b"]
    for view in views:
        view.mkdir()
    with pytest.raises(ClusterError, match=r"sees the files of 1 of 2 workers there.*state_dir"):
        start(Workers(*views))
    assert not any(list(view.iterdir()) for view in views)


def test_a_machine_without_the_run_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="cannot write there: No such file"):
        start(Workers(tmp_path, tmp_path / "missing"))
    assert list(tmp_path.iterdir()) == []


def test_machines_with_different_versions_are_refused(tmp_path: Path) -> None:
    workers = Workers(tmp_path, tmp_path)
    workers.hosts[1]["torch"] = "1.0"
    with pytest.raises(ClusterError, match=r"torch is .* and 1\.0 on host-1"):
        start(workers)


def test_one_rank_that_fails_stops_all() -> None:
    group = ray_group.Group()
    assert group.may_start()
    group.ended(RankEnd(0, 0))
    assert not group.is_stopping()
    group.ended(RankEnd(1, -9))
    assert group.is_stopping()
    assert not group.may_start()
    assert group.num_started() == 1
    assert [end.rank for end in group.ends()] == [0, 1]


def test_a_bundle_holds_what_one_rank_needs() -> None:
    pool = Pool("auto", cpus_per_rank=4, resource="opsd", timeout_s=1.0)
    assert pool.bundle("cuda") == {"CPU": 4.0, "GPU": 1.0, "opsd": 1.0}
    assert Pool("auto", 2, "", 1.0).bundle("cpu") == {"CPU": 2.0}
