"""Trainings that start from a Hugging Face directory, under DVC: what is there to start from is exactly its model.

The learning rate is too small to move a weight, so what a training writes is what it started from.
"""

import json
import shutil

import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from neobert.model.batch import FlatBatch
from neobert.model.storage import load_embedding_model, load_model
from tests.export.test_importers import published
from tests.pipeline.conftest import edit_params, run_in, stages_run

STILL = {"optimizer": {"lr": 1e-30}, "trainer": {"max_steps": 1}}
IDS = torch.randint(5, 500, (1, 17), generator=torch.Generator().manual_seed(0))
FLAT = FlatBatch(IDS[0], torch.arange(17), torch.tensor([0, 17], dtype=torch.int32), 17)


def inputs(project, stage):
    """What the fingerprints of a stage's runs hold as inputs."""
    runs = [json.loads(path.read_text()) for path in (project / "runs").glob(f"{stage}-*/run.json")]
    return {name for run in runs for name in run["parts"]["inputs"]}


def test_longer_context_starts_from_an_export(working_copy):
    edges = run_in(working_copy, "dvc", "dag", "--dot").out
    assert all(f'"longer_context" -> "{stage}"' in edges for stage in ("evaluate", "optional/dvc.yaml:glue"))
    start = shutil.copytree(working_copy / "models" / "export", working_copy / "models" / "start")
    edit_params(working_copy, {"longer_context": {"pretrained_from": "models/start", **STILL}})
    assert "pretrain" not in run_in(working_copy, "dvc", "dag", "evaluate", "--dot").out
    assert stages_run(run_in(working_copy, "dvc", "repro", "longer_context")) == ["longer_context"]
    assert "models/start" in inputs(working_copy, "longer_context")
    assert "path: models/start" in (working_copy / "dvc.lock").read_text()
    model, info, _ = load_model(working_copy / "models" / "long_context")
    with torch.no_grad():
        expected = AutoModelForMaskedLM.from_pretrained(start)(IDS).logits[0]
        assert (model.eval()(*FLAT) - expected).abs().max() <= 1e-5
    assert info.max_length == 128  # the phase's rows; the export's own is what pretraining's model was made for


def test_contrastive_starts_from_the_published_neobert_layout(working_copy):
    theirs = published(working_copy / "models" / "neobert", working_copy / "data" / "tokenizer", vocab=640)
    changes = {"pretrained_from": "models/neobert", "embedding_warmup": None, "token_weights": "none", **STILL}
    edit_params(working_copy, {"contrastive": changes})
    result = run_in(working_copy, "dvc", "repro", "contrastive_finetune")
    assert stages_run(result) == ["contrastive_finetune"]
    assert "models/neobert is a neobert model, not the one that params.yaml describes: 2 layers x 32" in result.all
    embedder, info = load_embedding_model(working_copy / "models" / "contrastive")
    with torch.no_grad():
        mean = theirs.hidden(IDS)[0].mean(dim=0)
        found = embedder(FLAT, num_segments=1)[0]
        assert (found - mean / mean.norm()).abs().max() <= 1e-5
    stored = load_file(working_copy / "models" / "contrastive" / "model.safetensors")
    assert torch.equal(stored["decoder.bias"], theirs.decoder.bias)
    assert not info.model.tie_word_embeddings
