"""A training checkpoint becomes a directory that transformers loads, with the same logits."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from transformers import AutoModelForMaskedLM

from neobert.errors import PipelineError
from neobert.export.dcp_to_hf import repackage
from neobert.io import write_manifest
from neobert.model.heads import MaskedLM
from neobert.model.storage import ModelInfo, save_model
from neobert.training.model_checkpoint import read_model_state
from neobert.training.objective import PretrainModel
from tests.training import tiny


def trained(scratch: Path, tokenizer_dir: Path, **changes) -> tuple[MaskedLM, Path]:
    """A short training with model checkpoints, its model, and its newest checkpoint."""
    torch.manual_seed(0)
    objective: PretrainModel = tiny.objective(**changes)
    ids = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "mask_token_id": 3, "unk_token_id": 0}
    info = ModelInfo(
        model=objective.model.config, vocab_size=tiny.VOCAB, max_length=tiny.LENGTH, tokenizer_sha256="0", **ids
    )

    def save(directory, state):
        save_model(directory, {k.removeprefix("model."): v for k, v in state.items()}, info, tokenizer_dir)

    tiny.run(scratch, {"max_steps": 4}, objective=objective, save_model=save)
    return objective.model.eval(), scratch / "checkpoints" / "4"


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}], ids=["tied", "untied"])
def test_it_loads_in_transformers_and_gives_the_same_logits(tmp_path, tokenizer_dir, changes):
    model, checkpoint = trained(tmp_path / "run", tokenizer_dir, num_hidden_layers=2, **changes)
    repackage(checkpoint, tmp_path / "out", 4000)
    names = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors*"))
    assert len(names) > 2
    assert "model.safetensors.index.json" in names
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(4, 20)
    with torch.no_grad():
        mine = model(ids, torch.arange(16), torch.tensor([0, 16], dtype=torch.int32), 16)
        torch.testing.assert_close(theirs(ids[None]).logits[0], mine, atol=1e-5, rtol=1e-5)


def test_damage_and_an_existing_target_are_refused(tmp_path, tokenizer_dir):
    _, checkpoint = trained(tmp_path / "run", tokenizer_dir)
    (tmp_path / "there").mkdir()
    with pytest.raises(PipelineError, match="exists; name a new directory"):
        repackage(checkpoint, tmp_path / "there", 10**9)
    (checkpoint / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(PipelineError, match="has 0 bytes"):
        repackage(checkpoint, tmp_path / "out", 10**9)
    assert not (tmp_path / "out").exists()


def test_the_checkpoint_may_be_named_through_a_link_or_a_dot(tmp_path, tokenizer_dir, monkeypatch):
    _, checkpoint = trained(tmp_path / "run", tokenizer_dir)
    (checkpoint.parent / "latest").symlink_to("4")
    monkeypatch.chdir(checkpoint)
    for index, name in enumerate((checkpoint.parent / "latest", Path("."), Path("../4/"))):
        repackage(name, tmp_path / f"out{index}", 10**9)
        assert (tmp_path / f"out{index}" / "config.json").is_file()


@pytest.mark.parametrize(
    ("changes", "missing"), [({"ngpt": True}, "logit_scale"), ({"tie_word_embeddings": False}, "decoder")]
)
def test_a_contrastive_checkpoint_without_the_decoder_s_part_is_refused(tmp_path, tokenizer_dir, changes, missing):
    """Fine-tuning trains the encoder alone; a tied decoder is its embeddings, but nGPT's also has scales of its own."""
    _, checkpoint = trained(tmp_path / "run", tokenizer_dir, **changes)
    stored = read_model_state(checkpoint)
    encoder = {f"model.{k}": v for k, v in stored.items() if ".encoder." in k}
    assert len(encoder) < len(stored)
    (checkpoint / ".metadata").unlink()
    dcp.save(encoder, checkpoint_id=checkpoint, no_dist=True)
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint, {"step": 4})
    with pytest.raises(PipelineError, match=rf"4: holds no {missing} .*contrastive.*; export models/contrastive"):
        repackage(checkpoint, tmp_path / "out", 10**9)
    assert not (tmp_path / "out").exists()
