"""Benchmarks' commands: help and one-line errors where a model or a package is not what they need."""

import sys

import pytest

from benchmarks import encode, kernels


def run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        module.main()
    return ended.value.code


def test_kernels_help_needs_no_kernels(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    assert run(monkeypatch, kernels, "--help") == 0
    assert "--tokens" in capsys.readouterr().out


@pytest.mark.parametrize("package", ["triton", "liger_kernel"])
def test_kernels_names_the_package_that_is_missing(monkeypatch, package):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None if name == package else True)
    assert f"error: benchmarks.kernels needs {package}," in run(monkeypatch, kernels)


def test_encode_says_which_directories_it_takes(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, encode, "--help") == 0
    assert "models/contrastive" in capsys.readouterr().out
    monkeypatch.setattr(encode, "natural_texts", lambda count: ["text"] * count)
    said = run(monkeypatch, encode, "--model", tmp_path)
    assert said.startswith(f"error: --model: {tmp_path}")
    assert "models/contrastive" in said
    assert "\n" not in said
