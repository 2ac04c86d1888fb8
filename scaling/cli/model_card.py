"""The README of an exported model: what it is, and its place on the law of its sweep."""

from pathlib import Path

import pandas as pd

from scaling import __version__
from scaling.accounting import count_parameters
from scaling.config import RunConfig, format_quantity
from scaling.language_model import LanguageModel
from scaling.record import Resolved


def model_card(model: LanguageModel, run: RunConfig, resolved: Resolved, root: Path) -> str:
    """Markdown with the front matter that Hugging Face reads."""
    data, counted = run.trunk.data, count_parameters(run.trunk.model)
    facts = resolved.facts_of(data.corpus_hash)
    classes = {"transformer": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}
    lines = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [scaling-law]\n---",
        f"# {run.run_id}",
        f"A run of the sweep `{resolved.sweep.name}`, trained and exported by scaling-harness {__version__}. It is a research model of "
        f"{format_quantity(counted.total)} parameters, trained to measure a scaling law; its text has no use beyond that.",
        "| | |\n|---|---|",
        f"| class | `{classes[model.config.family]}`, float32, context {model.config.context} tokens |",
        f"| parameters | {counted.non_embedding:,} non-embedding, {counted.total:,} in all |",
        f"| trained on | {run.tokens:,} tokens of `{data.corpus}` ({facts.get('licence', 'licence not recorded')}), "
        f"tokenizer {data.tokenizer} |",
        f"| held-out loss | {model.result['loss']:.4f} nats per token (standard error {model.result['loss_se']:.4f}), "
        f"{model.result['bits_per_byte']:.4f} bits per byte |",
        f"| text | content hash `{data.corpus_hash}` |\n| config | `{run.run_id}`, recipe version {run.trunk.recipe_version} |",
        "\n## Its place on the law",
        _place(model, run, resolved, root),
        "\n## Use",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\nids = tokenizer("def ", return_tensors="pt").input_ids\n'
        "print(tokenizer.decode(model.generate(ids, max_new_tokens=100)[0]))\n```",
    ]
    if model.config.family == "transformer":
        lines.append(
            "`gate_proj` and `up_proj` are the same matrix: relu(x)^2 is written as relu(x) times x, so the folder holds more numbers "
            "than the model has parameters."
        )
    return "\n".join(lines).replace("|---|---|\n\n", "|---|---|\n") + "\n"


def _place(model: LanguageModel, run: RunConfig, resolved: Resolved, root: Path) -> str:
    """What the fitted law of the sweep says of this run."""
    from analysis.laws import get_law

    name, column = resolved.sweep.fit.forecast_law, resolved.sweep.fit.n_column
    if not (root / "laws.csv").is_file():
        return f"No law was fitted to the sweep yet (`scaling fit {root}`)."
    table = pd.read_csv(root / "laws.csv").query("law == @name and n_column == @column")
    if table.empty:
        return f"The sweep's tables hold no fit of `{name}`."
    estimates = table[table["fit_id"] == table["fit_id"].iloc[0]].set_index("parameter")
    law, counted = get_law(name), count_parameters(run.trunk.model)
    sizes = {"params_non_embedding": counted.non_embedding, "params_total": counted.total}
    values = {parameter: float(estimates.loc[parameter, "estimate"]) for parameter in law.parameters}  # pyright: ignore[reportArgumentType]
    size = sizes.get(column, counted.non_embedding)
    predicted = float(law.predict(values, N=float(size), D=float(run.tokens)))
    rows = [f"| {p} | {r.estimate:.4g} | {r.ci_low:.4g} to {r.ci_high:.4g} |" for p, r in estimates.iterrows()]
    measured = model.result["loss"]
    return (
        f"`L = {law.formula}`, N = {column}, fitted to the runs of the sweep: at N = {size:,} and D = {run.tokens:,} the law says "
        f"{predicted:.4f} nats per token; measured {measured:.4f} ({100 * (measured / predicted - 1):+.2f} %).\n\n"
        "| parameter | estimate | 95 % interval, if the law is true |\n|---|---|---|\n" + "\n".join(rows)
    )
