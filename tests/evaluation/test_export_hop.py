"""Trap 9's last hop: what is scored is what sentence-transformers computes from the exported directory."""

from unittest.mock import patch

import pytest
import torch

from neobert.config.evaluation import EvaluationConfig
from neobert.config.export import ExportConfig
from neobert.errors import PipelineError
from neobert.evaluation.models import EncodeSettings, finetuned
from neobert.export.export import export
from neobert.model.storage import load_model
from tests.evaluation.conftest import make_model, sentences


def write_export(source, target, **options):
    with patch("neobert.export.export.validate", lambda *_: {}):  # its own tests start fresh processes
        export(source, target, ExportConfig(**options))


@pytest.mark.parametrize(("dtype", "layout"), [("fp32", "native"), ("bf16", "native"), ("fp32", "neobert")])
def test_a_real_export_is_accepted(model_dir, tmp_path, dtype, layout):
    write_export(model_dir, tmp_path / "export", dtype=dtype, format=layout)
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
