"""One batch gives one adapter, however many ranks share the work and the weights."""

import contextlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.unit.trainer.conftest import PAIRS
from tests.unit.trainer.ranks import on_ranks, run_on_ranks

from opsd.trainer.errors import ModelError
from opsd.trainer.forward import response_hidden_TD
from opsd.trainer.lora import StudentTeacher
from opsd.trainer.methods.logprobs import token_logprobs
from opsd.trainer.model import load_base
from opsd.trainer.spec import load_spec
from opsd.v1 import training_pb2

MakeRun = Callable[..., Path]
Train = Callable[[Path], Any]
FSDP = {"sharding": "SHARDING_FSDP"}
OPTIM = {"num_steps": 3, "problems_per_step": 4, "micro_batch_size": 1, "learning_rate": 0.01}


@pytest.fixture
def untied_model(micro_model: Path, tmp_path: Path) -> Path:
    """The micro model with a head of its own, in several files."""
    from transformers import AutoModelForCausalLM

    path = tmp_path / "untied-model"
    path.mkdir()
    for name in os.listdir(micro_model):
        if not name.endswith(".safetensors"):
            (path / name).write_bytes((micro_model / name).read_bytes())
    model = AutoModelForCausalLM.from_pretrained(micro_model)
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(model.lm_head.weight.shape, generator=generator) * 0.3
    model.lm_head.weight = torch.nn.Parameter(head)
    model.config.tie_word_embeddings = False
    model.save_pretrained(path, max_shard_size="20KB")
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_ranks_gives_the_same_adapter(
    make_run: MakeRun, train: Train, untied_model: Path, world_size: int
) -> None:
    settings: dict[str, Any] = {
        "optim": OPTIM,
        "objective": {"clip_mode": "CLIP_MODE_CLAMP", "clip_value": 0.05},
    }
    untied = settings | {"model": {"path": str(untied_model)}}
    recomputed = FSDP | {"gradient_checkpointing": True}
    tied_alone = train(make_run("tied", **settings))
    untied_alone = train(make_run("untied", **untied))
    settings["num_processes"] = untied["num_processes"] = world_size
    together = {
        make_run("replicated", **settings): tied_alone,
        make_run("sharded", parallel=FSDP, **settings): tied_alone,
        make_run("recomputed", parallel=recomputed, **untied): untied_alone,
    }
    run_on_ranks(world_size, list(together))
    for run_json, alone in together.items():
        assert_same(run_json.parent, alone)


def test_every_loss_can_be_sharded(make_run: MakeRun, train: Train) -> None:
    losses: dict[str, dict[str, Any]] = {
        "sft": {"method": "METHOD_SFT"},
        "anchored": {"anchor_weight": 0.5, "teacher": "TEACHER_EMA", "ema_decay": 0.5},
        "top-k-audited": {"top_k": 5, "divergence": "DIVERGENCE_JSD", "jsd_beta": 0.3},
        "sampled": {"divergence": "DIVERGENCE_POLICY_GRADIENT"},
    }
    recomputed = FSDP | {"gradient_checkpointing": True}
    audit = {"attempts_per_step": 2, "alternatives": 2}
    together = {
        make_run(
            f"{name}-sharded",
            optim=OPTIM,
            objective=loss,
            num_processes=2,
            parallel=recomputed,
            token_audit=audit if "audited" in name else {},
        ): train(make_run(name, optim=OPTIM, objective=loss))
        for name, loss in losses.items()
    }
    run_on_ranks(2, list(together))
    for run_json, alone in together.items():
        assert_same(run_json.parent, alone)


def test_sharded_ranks_with_unequal_work_make_as_many_passes(
    make_run: MakeRun, train: Train
) -> None:
    """One of four solutions is too long for the context, so that one rank has less to do."""
    settings: dict[str, Any] = {
        "pairs": [*PAIRS[:3], PAIRS[3] | {"solution": "1" * 200}],
        "optim": OPTIM,
        "objective": {"method": "METHOD_SFT"},
    }
    alone = train(make_run("alone", **settings))
    assert alone.result.last.trained_fraction == 0.75
    shared = make_run("shared", num_processes=2, parallel=FSDP, **settings)
    run_on_ranks(2, [shared])
    assert_same(shared.parent, alone)


def test_fsdp_in_one_process_is_the_whole_model(make_run: MakeRun, train: Train) -> None:
    whole = train(make_run("whole", optim=OPTIM))
    assert train(make_run("fsdp", optim=OPTIM, parallel=FSDP)).adapter == whole.adapter


def test_each_rank_holds_its_rows_alone_and_gathers_for_sampling(
    make_run: MakeRun, untied_model: Path
) -> None:
    for name, model in (("tied", None), ("untied", {"path": str(untied_model)})):
        run_json = make_run(name, num_processes=2, **({"model": model} if model else {}))
        on_ranks(2, look_at_the_shards, str(run_json))


def look_at_the_shards(run_json: str) -> None:
    from torch.distributed.tensor import DTensor

    from opsd.trainer.distributed import Ranks

    spec = load_spec(Path(run_json))
    ranks = Ranks("cpu", 2)
    whole = load_base(spec.model, ranks.device)
    base = load_base(spec.model, ranks.device, training_pb2.SHARDING_FSDP)
    network = StudentTeacher(base, spec)
    expected = dict(whole.causal.named_parameters())
    plain = {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in base.causal.named_parameters()
        if "lora_" not in name
    }
    assert plain.keys() == expected.keys()
    for name, parameter in plain.items():
        assert isinstance(parameter, DTensor), name
        rows = expected[name].chunk(2)[ranks.rank]
        assert torch.equal(parameter.to_local(), rows), name
    with pytest.raises(AssertionError, match="gather it first"):
        _ = network.head_weight_VD
    with network.whole_head():
        assert torch.equal(network.head_weight_VD, whole.causal.get_output_embeddings().weight)
        assert isinstance(
            base.causal.get_decoder().layers[0].mlp.up_proj.base_layer.weight, DTensor
        )
    assert_same_logprobs(network, StudentTeacher(whole, spec), ranks.rank)
    ids = torch.tensor([[1, 2, 3]])
    with network.gathered(), torch.no_grad():
        assert torch.equal(network.head_weight_VD, whole.causal.get_output_embeddings().weight)
        # Without the other rank: nothing in here may wait for it.
        if ranks.rank == 0:
            with network.teacher_network() as teacher:
                logits = teacher(input_ids=ids).logits
            torch.testing.assert_close(logits, whole.causal(input_ids=ids).logits)
    assert all(
        isinstance(parameter, DTensor)
        for name, parameter in base.causal.named_parameters()
        if "lora_" not in name
    )
    ranks.close()


def assert_same_logprobs(network: StudentTeacher, alone: StudentTeacher, rank: int) -> None:
    """Of other tokens on each rank, and not as many; the base stays spread."""
    alone.student.weights_P.copy_(network.student.weights_P)
    response = (4, 5, 6)[: 2 + rank]
    found, want = (
        token_logprobs(
            response_hidden_TD(one.student_hidden_BLD, [(1, rank)], [response], one.device),
            one.head,
            torch.tensor(response),
            1.0,
        )
        for one in (network, alone)
    )
    torch.testing.assert_close(found, want)


def test_weights_under_other_names_are_loaded_whole_and_that_is_said(
    make_run: MakeRun,
) -> None:
    run_json = make_run(num_processes=2)
    on_ranks(2, look_at_renamed, str(run_json))


def look_at_renamed(run_json: str) -> None:
    from opsd.trainer import sharded_load
    from opsd.trainer.distributed import Ranks

    spec = load_spec(Path(run_json))
    ranks = Ranks("cpu", 2)
    sharded_load.can_be_read_in_parts = lambda causal, path: False
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        base = load_base(spec.model, ranks.device, training_pb2.SHARDING_FSDP)
    assert ("every rank loads it whole first" in said.getvalue()) == (ranks.rank == 0)
    rows = base.sharded.head_rows() if base.sharded is not None else None
    whole = load_base(spec.model, ranks.device).causal.get_output_embeddings().weight
    assert rows is not None
    assert torch.equal(rows, whole.chunk(2)[ranks.rank])
    ranks.close()


def test_a_weight_of_another_shape_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    spec = load_spec(make_run())
    folder = tmp_path / "wrong"
    folder.mkdir()
    for name in os.listdir(spec.model.path):
        (folder / name).write_bytes((Path(spec.model.path) / name).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    run_json = make_run("wrong-run", num_processes=2, model={"path": str(folder)})
    on_ranks(2, refuse, str(run_json))


def refuse(run_json: str) -> None:
    from opsd.trainer.distributed import Ranks

    ranks = Ranks("cpu", 2)
    with pytest.raises(ModelError, match=r"gate_proj.weight is \[32, 16\], config.json says \[40"):
        load_base(load_spec(Path(run_json)).model, ranks.device, training_pb2.SHARDING_FSDP)
    ranks.close()


def assert_same(run_dir: Path, alone: Any) -> None:
    """The run succeeded with the adapter and the metrics of the one that had no company."""
    result = json.loads((run_dir / "result.json").read_text())
    assert result["outcome"] == "RUN_OUTCOME_SUCCEEDED", (run_dir.name, result.get("error"))
    want, found = weights(alone.run_dir), weights(run_dir)
    assert want.keys() == found.keys()
    for key, tensor in want.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-6)
    for name in ("loss", "grad_norm", "student_entropy"):
        assert result["last"][name] == pytest.approx(getattr(alone.result.last, name), rel=1e-4)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "adapter" / "adapter_model.safetensors")
