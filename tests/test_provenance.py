"""From a number back to its config, text, code and machine, and what that notices."""

import json
import shutil

import msgspec
import pandas as pd

from scaling.cli.main import main
from scaling.config import RunConfig


def test_a_number_is_traced_to_config_text_and_code(finished_tiny, tmp_path, capsys):
    row = pd.read_csv(finished_tiny / "runs.csv").iloc[0]

    def provenance(root):
        assert main(["status", str(root), "--run", row["run_id"], "--provenance", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    found = provenance(finished_tiny)
    assert found["result"]["loss"] == row["loss"] and all(found["checks"].values())
    assert msgspec.convert(found["config"], RunConfig).run_id == row["run_id"]
    assert found["text"]["content_hash"] == row["corpus_hash"]
    environment = json.loads((finished_tiny / "runs" / row["run_id"] / "environment.json").read_text())
    assert found["code"]["code_version"] == environment["code_version"] and found["machine"]["host"] == row["host"]

    copy = tmp_path / "copy"
    shutil.copytree(finished_tiny, copy)
    weights = copy / "runs" / row["run_id"] / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    found = provenance(copy)
    assert not found["checks"]["files are as they were published"]
    assert found["files"]["weights.safetensors"] == "changed since it was published"

    shutil.rmtree(copy / "runs")
    found = provenance(copy)
    assert found["result"]["loss"] == row["loss"] and "committed tables" in found["note"]
    assert main(["status", str(copy), "--run", row["run_id"], "--provenance"]) == 0 and "recipe version" in capsys.readouterr().out
    assert main(["status", str(copy), "--run", row["run_id"]]) == 2 and "--provenance" in capsys.readouterr().err
