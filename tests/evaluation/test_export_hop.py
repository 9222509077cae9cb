"""Trap 9's last hop: what is scored is what sentence-transformers computes from the exported directory."""

import pytest
import torch

from neobert.config.evaluation import EvaluationConfig
from neobert.config.export import ExportConfig
from neobert.errors import PipelineError
from neobert.evaluation.models import EncodeSettings, finetuned
from neobert.export.export import build_embedder, write_directory
from neobert.model.storage import load_model
from tests.evaluation.conftest import make_model, sentences


def write_export(source, target, **options):
    model, info, extra = load_model(source)
    target.mkdir()
    write_directory(target, source, model, build_embedder(model, info, extra), info, ExportConfig(**options))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_real_export_is_accepted(model_dir, tmp_path, dtype):
    write_export(model_dir, tmp_path / "export", dtype=dtype)
    settings = EncodeSettings.of(EvaluationConfig(mteb_batch_size=4))
    model = finetuned(model_dir, tmp_path / "export", sentences(20), settings)
    assert model.prompts["query"] == "cat "
    assert model.mteb_model_meta.name == "neobert/finetuned"
    assert model.embedder.encode(["a dog"]).shape == (1, 32)
    assert next(model.embedder.embedder.parameters()).dtype == torch.float32


def test_an_export_of_other_weights_is_refused(model_dir, tmp_path):
    info = make_model(tmp_path / "other", load_model(model_dir)[1].embedding, seed=9)
    assert info.max_length == 48
    write_export(tmp_path / "other", tmp_path / "export")
    with pytest.raises(PipelineError, match=r"embeddings .query. differ from the trained model's"):
        finetuned(model_dir, tmp_path / "export", sentences(5), EncodeSettings.of(EvaluationConfig()))
