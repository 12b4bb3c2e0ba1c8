"""Pre-trains an encoder.

    python -m jaxpretrain.train --config configs/tupe.py
    python -m jaxpretrain.train --config configs/tupe.py:base --workdir gs://bucket/tupe --config.sharding.fsdp=8

Writes to the workdir (default `runs/NAME-SIZE`): config.json, tokenizer.model, metrics.jsonl, TensorBoard events,
checkpoints/ and, at the end, DONE. The same command resumes a stopped run; a larger `train.steps` lengthens a finished
one (the learning rate then follows the longer schedule from there on). `--config.train.budget_flops=1e15` or
`budget_minutes=10` sets the steps by their cost.

This file is the whole loop; what it calls is a library.
"""

import json
import shlex
import sys
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from signal import SIGTERM
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from jaxpretrain import cli
from jaxpretrain.config import Config, ConfigError
from jaxpretrain.data.build import prepare
from jaxpretrain.data.prepared import Corpus
from jaxpretrain.evaluation.heldout import Evaluation
from jaxpretrain.models.attention import check_fused
from jaxpretrain.models.encoder import compute_dtype
from jaxpretrain.objectives import build
from jaxpretrain.training import flops, hosts, memory, sharding
from jaxpretrain.training.budget import with_budget
from jaxpretrain.training.checkpoint import Checkpointer
from jaxpretrain.training.compilation import use_compilation_cache
from jaxpretrain.training.heap import keep_freed_memory, run_in_this_thread
from jaxpretrain.training.metrics import Average, MetricWriter
from jaxpretrain.training.optimizer import optimizer as make_optimizer
from jaxpretrain.training.optimizer import schedules
from jaxpretrain.training.phases import Phase, batches, phases, tokens_per_step_of, total
from jaxpretrain.training.profile import Profile
from jaxpretrain.training.programs import state_program, step_program
from jaxpretrain.training.signals import Signals
from jaxpretrain.training.storage import write_whole
from jaxpretrain.training.workdir import (
    check_pieces,
    check_resume,
    check_workdir,
    corpus_marks,
    digest,
    locked,
    params_of_run,
    read_config,
    workdir_name,
    write_run_files,
)

flags.declare_key_flag("workdir")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes, each with its own devices (docs/scale.md); jax finds the others."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process, where jax cannot find it.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many there are, with --coordinator.")
PROCESS = flags.DEFINE_integer("process", None, "The number of this one, from 0, with --coordinator.")
PROFILE = flags.DEFINE_integer(
    "profile",
    0,
    "Trace so many steps, after the first ten of this start, into WORKDIR/profile (for TensorBoard or Perfetto).",
    lower_bound=0,
)


def main(config: Config) -> None:
    """Trains, from scratch or from where the workdir stands."""
    run_in_this_thread()
    if (PROCESSES.value, PROCESS.value) != (None, None) and not (COORDINATOR.value or DISTRIBUTED.value):
        raise ConfigError("--processes and --process go with --coordinator=HOST:PORT, the address of the first process")
    if DISTRIBUTED.value or COORDINATOR.value:
        hosts.join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    workdir = epath.Path(cli.WORKDIR.value or workdir_name(config, cli.recipe()))
    with hosts.watched("start all of them again, and the run goes on from its last checkpoint"), locked(workdir):
        check_workdir(config, workdir)
        train(config, workdir, PROFILE.value)


@memory.exhausted_in_one_line()
def train(config: Config, workdir: epath.Path, profile_steps: int = 0) -> dict[str, float]:
    """Runs until `train.steps`, a signal, or a step that is not finite.

    Args:
        config: validated.
        workdir: held by `locked`, with this run in it or none (`check_workdir`).
        profile_steps: how many to trace.

    Returns:
        The held-out metrics at the end.

    Raises:
        ConfigError: config, corpus, devices and workdir do not go together; or memory does not suffice.
        cli.Failure: a step was not finite.
        SystemExit: after a signal, with its exit code; the state is saved.
    """
    use_compilation_cache()
    mesh = sharding.make_mesh(config)
    check_fused(config.model, compute_dtype(config.model), [phase.length for phase in phases(config)])
    with hosts.first_one_first("for the corpus"):
        corpus = prepare(config.data, config.notes, progress=hosts.first())
    config = with_budget(config, read_config(workdir), corpus, mesh)
    marks = corpus_marks(corpus, config)
    for field, mark in {"data.source": marks["corpus"], "--config": digest(config)}.items():
        hosts.check_same(field, mark)
    objective, optimizer = build(config, corpus.vocab_size), make_optimizer(config)

    # The state: its own workdir's, else another run's parameters, else from scratch. Born sharded in each case.
    init, like = state_program(config, objective, optimizer, mesh, corpus.note_rows)
    checkpoints = Checkpointer(
        workdir / "checkpoints", keep=config.checkpoint.keep, keep_best=config.checkpoint.keep_best
    )
    restored = checkpoints.restore(like, check=partial(check_resume, config, marks, workdir))
    if restored is not None:
        state, host = restored
    else:
        state, host = init(config.train.seed), {"seconds": 0.0, "flops": 0}
        if config.init_from:
            check_pieces(config.init_from, corpus)
            taken = params_of_run(config, like.params)
            state = replace(state, params=state.params | taken)
            if not config.init_encoder_only and (fresh := sorted(state.params.keys() - taken.keys())):
                print(f"note: {config.init_from} has another objective: its encoder is taken, not {', '.join(fresh)}")
    start, steps = int(state.step), config.train.steps
    done = workdir / "DONE"
    if start == steps and done.exists():
        result: dict[str, float] = json.loads(done.read_text())
        print(f"{workdir} is done: {steps} steps; more with --config.train.steps={2 * steps}")
        say_what_next(workdir, objective.headline, result)
        return result

    # Batches are a function of (seed, step): a resumed run goes on with the same sequence.
    plan, on_rows = phases(config), sharding.batch_sharding(mesh)
    stream = batches(plan, corpus, start)

    def next_batch(wish: int = hosts.GO_ON) -> dict[str, Any]:
        """The next step's rows, and what this process wishes: the step tells all processes the highest wish."""
        local = next(stream)
        return sharding.put_batch(local | {"wishes": np.full(len(local["rows"]), wish, np.int8)}, on_rows)

    # Compile ahead: what is wrong in shapes or memory shows now, and the table tells what is about to run.
    programs, flops_per_step, began = {}, {}, time.perf_counter()  # by the length of the sequences
    for phase in plan:
        shapes_of_batch = phase.batch_shapes(on_rows)
        flops_per_step[phase.length] = flops.step_flops(phase.config, corpus.vocab_size, like.params, shapes_of_batch)
        if start < phase.stop:
            program = step_program(phase.config, build(phase.config, corpus.vocab_size), optimizer, mesh, like)
            programs[phase.length] = program.lower(like, shapes_of_batch).compile()
    evaluate = Evaluation(config, corpus, mesh)
    memory.check(memory.needed([*programs.values(), evaluate.compile(like)]))
    keep_freed_memory()
    compile_seconds = time.perf_counter() - began
    flops_of = partial(total, plan, flops_per_step)
    batch = next_batch() if start < steps else {}
    peak = flops.peak_flops()
    if hosts.first():  # from here on it is a run: what was a mistake has shown
        done.unlink(missing_ok=True)
        write_run_files(config, corpus, workdir)
    print_table(config, corpus, mesh, like, plan, programs, flops_of(steps) / steps, compile_seconds, workdir, start)

    rates = schedules(config)
    tokens_per_step, headline = tokens_per_step_of(config), f"eval/{objective.headline}"
    window, window_steps = Average(), 0
    seconds = host["seconds"]  # of training alone, over all resumes
    spent = host.get("flops", flops_of(start)) - flops_of(start)  # besides: a lengthened run's phases lay elsewhere
    result = {}
    on_screen = (objective.headline, "mlm_accuracy", "choice_accuracy", "discriminator_accuracy", "unigram_loss")
    wish, saved_step = hosts.GO_ON, start
    redraw = 0.5 if sys.stderr.isatty() else 30.0  # seconds; a log file needs no more

    def read(step: int, metrics: dict[str, Any]) -> None:
        """Takes in the metrics of a step, waiting for it where it still runs."""
        nonlocal wish
        metrics = jax.device_get(metrics)
        if step > saved_step + 1 or metrics["wish"] == hosts.STOP:  # older wishes to save are fulfilled
            wish = max(wish, int(metrics["wish"]))
        if not metrics["finite"]:
            checkpoints.wait()
            saved = max(checkpoints.steps(), default=0)
            raise cli.Failure(
                f"step {step}: loss or gradient is not finite (gradient norm {metrics['grad_norm']:.3g}); the "
                f"update was not applied, nothing after step {saved} was saved: a lower optim.learning_rate "
                f"(Muon's: muon_rate) or a longer optim.warmup_steps in a new --workdir usually helps"
            )
        window.add(metrics["metrics"])
        window.add({"grad_norm": (metrics["grad_norm"], 1)})

    with (
        closing(checkpoints),
        closing(MetricWriter(workdir, start if restored else None)) as writer,
        Signals() as signals,
        Profile(workdir / "profile", start + 10, profile_steps) as profile,
        tqdm(
            total=steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            mininterval=redraw,
            smoothing=0.05,
            disable=not hosts.first(),
        ) as bar,
        hosts.watched(f"start all of them again, and the run goes on from the newest checkpoint in {workdir}"),
    ):
        if due(start, config.eval.every) and not host.get("evaluated", True):
            writer.write(start, evaluate(state))  # the run was told to stop where this was due
        previous = None
        clock = saved_at = time.perf_counter()
        for step in range(start + 1, steps + 1):
            profile.before(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                take_step = programs[batch["tokens"].shape[1]]
                state, metrics = take_step(state, batch)  # off CPUs dispatched: the host goes on
            if step < steps:
                minutes = (time.perf_counter() - saved_at) / 60
                save_now = hosts.first() and 0 < config.checkpoint.every_minutes <= minutes
                batch = next_batch(hosts.STOP if signals.received else hosts.SAVE if save_now else hosts.GO_ON)
            if previous is not None:
                read(*previous)
            previous = (step, metrics)
            window_steps += 1
            bar.update()

            stop, last = wish == hosts.STOP, step == steps
            log_due = step % config.train.log_every == 0
            eval_due = last or (not stop and due(step, config.eval.every))
            save_due = last or wish != hosts.GO_ON or due(step, config.checkpoint.every_steps)
            if not (log_due or eval_due or save_due):
                continue

            read(*previous)  # nothing is saved or judged before its flag is seen
            previous = None
            elapsed = time.perf_counter() - clock
            seconds += elapsed
            line = {f"train/{name}": value for name, value in window.take().items()}
            line |= {f"train/{name}": float(np.asarray(rate(step - 1))) for name, rate in rates.items()}
            line |= {
                "speed/tokens_per_second": window_steps * tokens_per_step / elapsed,
                "speed/step_ms": 1e3 * elapsed / window_steps,
                "total/tokens": step * tokens_per_step,
                "total/flops": spent + flops_of(step),
                "total/seconds": seconds,
            }
            if peak:
                line["speed/mfu"] = (flops_of(step) - flops_of(step - window_steps)) / elapsed / (peak * mesh.size)
            bar.set_postfix_str(f"loss {line['train/loss']:.3f}, {line['speed/tokens_per_second']:,.0f} tokens/s")
            window_steps = 0
            if eval_due:
                result = evaluate(state)
                line |= result
                shown = [f"{name} {result[f'eval/{name}']:.3f}" for name in on_screen if f"eval/{name}" in result]
                bar.write(f"step {step:>7,}  held out: {', '.join(shown)}")
            writer.write(step, line)
            if save_due:
                host = {"seconds": seconds, "flops": spent + flops_of(step), "evaluated": eval_due} | marks
                judged = eval_due and objective.ranks_checkpoints
                checkpoints.save(step, state, host, metric=result[headline] if judged else None)
                saved_at, saved_step, wish = time.perf_counter(), step, hosts.GO_ON
            if stop and not last:
                checkpoints.wait()
                bar.close()
                why = signals.received or "another process was told to stop"
                print(f"{why}: saved after step {step}; the same command goes on from there")
                raise SystemExit(signals.exit_code or 128 + SIGTERM)
            clock = time.perf_counter()

    result = result or evaluate(state)  # empty: stopped between the last step and DONE
    if hosts.first():
        write_whole(done, (json.dumps({"step": steps} | result) + "\n").encode())
    say_what_next(workdir, objective.headline, result)
    return result


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens now."""
    return every > 0 and step % every == 0


def print_table(
    config: Config,
    corpus: Corpus,
    mesh: jax.sharding.Mesh,
    state: Any,
    plan: list[Phase],
    programs: dict[int, jax.stages.Compiled],
    flops_per_step: float,
    compile_seconds: float,
    workdir: epath.Path,
    start: int,
) -> None:
    """One table of what is about to run."""
    tokens, length = tokens_per_step_of(config), config.data.sequence_length
    read = tokens * (length - 2) // length  # of the text: each sequence has [CLS] and [SEP] besides
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    needed = memory.needed(programs.values())
    gigabytes = f"{needed / 2**30:.2f} GiB per device" if needed else "not known"
    batch = ", then ".join(f"{phase.config.train.batch_size} x {phase.length}" for phase in plan)
    after = f" ({plan[0].stop:,} first)" if len(plan) > 1 else ""
    devices = jax.devices()
    table = {
        "run": f"{workdir}" + (f", goes on from step {start:,}" if start else ""),
        "model": f"{config.model.layers} x {config.model.hidden}, {config.model.heads} heads, {config.model.position}; "
        f"objective {config.objective.name}; {parameters:,} parameters",
        "step": f"{batch} = {tokens:,} tokens, "
        f"{flops_per_step / tokens / 1e6:,.1f} MFLOP per token; {config.train.steps:,} steps{after}",
        "devices": f"{len(devices)} x {devices[0].device_kind}, mesh {dict(mesh.shape)}, {gigabytes}",
        "corpus": f"{config.data.source}: {corpus.train_tokens:,} tokens in {corpus.vocab_size:,} pieces "
        f"({config.train.steps * read / max(corpus.train_tokens, 1):.1f} passes), "
        f"{corpus.valid_tokens:,} held out, fingerprint {corpus.fingerprint[:12]}",
        **({"notes": f"{corpus.note_rows:,} rare words"} if config.notes.enabled else {}),
        "compiled": f"in {compile_seconds:.1f} s",
    }
    print("\n".join(f"  {name:<9} {text}" for name, text in table.items()), flush=True)
    if corpus.valid_tokens < tokens:
        print(
            f"note: {corpus.valid_tokens:,} held-out tokens say little: is there a blank line between documents? "
            "More are held out by --config.data.held_out=0.1"
        )
    if (warmup := config.optim.warmup_steps) > config.train.steps / 2:
        falls = max(config.train.steps - warmup, 0)
        print(
            f"note: the learning rate rises for {warmup:,} steps and has {falls:,} to fall: "
            f"--config.optim.warmup_steps={config.train.steps // 10} is a tenth of the run"
        )


def say_what_next(workdir: epath.Path, headline: str, result: dict[str, float]) -> None:
    """The held-out result, and the command that shows what was learnt."""
    print(f"\nheld-out {headline.replace('_', ' ')} {result[f'eval/{headline}']:.3f} nats", end="")
    if "eval/mlm_accuracy" in result:
        print(f", {100 * result['eval/mlm_accuracy']:.1f} % of the masked pieces right", end="")
    if "eval/unigram_loss" in result:
        print(f"; guessing by frequency alone {result['eval/unigram_loss']:.3f}", end="")
    run = shlex.quote(str(workdir))
    print(f"\n\n  python -m jaxpretrain.predict --workdir {run} 'Returns the [MASK] of the list.'")


if __name__ == "__main__":
    cli.run(main)
