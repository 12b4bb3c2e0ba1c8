"""What pre-training bought on GLUE: a run's encoder against the same network untrained, same trials.

    python benchmarks/glue.py --run runs/tupe-tiny --data-dir GLUE --tasks CoLA MRPC SST-2

Each is `jaxpretrain.finetune` with its grid; trials that are done stay done (stop it and start it again at will).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from study import command, machine, table, write_record

from jaxpretrain.evaluation.finetuned import read_trials
from jaxpretrain.evaluation.scores import summary
from jaxpretrain.training.workdir import config_of


def main() -> None:
    """Fine-tunes, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="workdir of a pre-training run")
    parser.add_argument("--data-dir", default="", help="folder in GLUE's layout; empty: TensorFlow Datasets")
    parser.add_argument("--tasks", nargs="+", default=["CoLA", "MRPC", "SST-2"])
    parser.add_argument("--runs", type=Path, default=Path("runs/glue"), help="where the trials live")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of the fine-tuning's config"
    )
    parser.add_argument("--text", default="", help="what the encoder was trained on, where data.source is a local file")
    parser.add_argument("--size", default="tiny", help="of configs/glue.py")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/glue-tiny"))
    options = parser.parse_args()

    def arguments(task: str, untrained: bool, run: str) -> list[str]:
        chosen = [field.removeprefix(f"{task}:") for field in options.set if ":" not in field or field.startswith(task)]
        last = dict(field.split("=", 1) for field in chosen)  # of a field that is set twice
        fields = [f"--config.{name}={value}" for name, value in last.items()]
        fields += ["--config.untrained=true"] * untrained
        return [
            "--config",
            f"configs/glue.py:{options.size}",
            f"--config.init_from={run}",
            f"--config.task={task}",
            *fields,
        ]

    rows, record = [], {}
    for task in options.tasks:
        cells = {}
        for untrained in (False, True):
            workdir = options.runs / f"{task}{'-untrained' if untrained else ''}"
            data = [f"--config.data_dir={options.data_dir}"] if options.data_dir else []
            given = [*arguments(task, untrained, options.run), *data, "--workdir", str(workdir)]
            subprocess.run([sys.executable, "-m", "jaxpretrain.finetune", *given, "--probe"], check=True)
            about = json.loads((workdir / "summary.json").read_text())
            values = [
                next(iter(r.scores.values()))[about["metric"]]
                for r in read_trials(workdir)  # type: ignore[arg-type]
                if r.rate == about["best_rate"]
            ]
            cells[untrained] = about | summary(values) | {"values": values}
        record[task] = {"pre-trained": cells[False], "untrained": cells[True]}
        trained, fresh = cells[False], cells[True]
        probed = [100 * next(iter(about["probe"].values()))[about["metric"]] for about in (trained, fresh)]
        gain = 100 * (np.median(trained["values"]) - np.median(fresh["values"]))
        rows.append(
            [
                f"{task} ({trained['metric']})",
                shown(trained),
                shown(fresh),
                f"{gain:+.1f}",
                *(f"{x:.1f}" for x in probed),
            ]
        )
    run = config_of(options.run)
    about = (
        f"Dev score × 100: median (range) over seeds at the best rate, and that rate. Encoder: {run.model.layers} × "
        f"{run.model.hidden}, {run.model.position}, {run.train.steps:,} steps of {run.train.batch_size} × "
        f"{run.data.sequence_length} tokens of {options.text or run.data.source}. {machine()}."
    )
    head = [
        "task",
        "pre-trained",
        "the same network untrained",
        "difference",
        "linear probe on frozen vectors",
        "of the untrained",
    ]
    commands = "\n".join(
        f"- `python -m jaxpretrain.finetune {' '.join(arguments(t, False, 'RUN'))}`" for t in options.tasks
    )
    body = (
        f"{table(head, rows)}\n\n{commands}\n\nUntrained with `--config.untrained=true`. "
        f"All: `{command(run='RUN', data_dir='GLUE')}`"
    )
    files = {"glue.json": json.dumps(record, indent=1) + "\n"}
    write_record(options.out, "GLUE from a tiny encoder", about, body, files)


def shown(cells: dict) -> str:
    """Median, range and rate."""
    low, high = min(cells["values"]), max(cells["values"])
    return f"{100 * cells['median']:.1f} ({100 * low:.1f} – {100 * high:.1f}), {cells['best_rate']:g}"


if __name__ == "__main__":
    main()
