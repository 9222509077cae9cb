"""A training checkpoint becomes a directory that transformers loads, with the same logits."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

from neobert.errors import PipelineError
from neobert.export.dcp_to_hf import repackage
from neobert.model.heads import MaskedLM
from neobert.model.storage import ModelInfo, save_model
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
