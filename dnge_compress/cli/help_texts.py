"""What `dnge --help` and the helps of its commands say at their end. Lines are made for 80 columns."""

EPILOG = """\
examples:
  dnge compress sentence-transformers/all-MiniLM-L6-v2 -o small --ratio 0.3
  dnge plan MODEL -o plan.json --ratio 0.3
  dnge apply plan.json MODEL -o small
  dnge report small
  dnge run jobs/prune-recover model_name_or_path=MODEL output_dir=runs/small

exit codes:
  0    done
  1    unexpected failure (DNGE_DEBUG=1 shows the traceback)
  2    usage or bad input: an unknown recipe, a broken checkpoint,
       a folder that is not ours
  3    a budget that is out of range or can't be reached
  4    the exactness check failed; nothing was written
  5    a training whose loss or gradient is no finite number any more;
       what was good stays
  130  interrupted (Ctrl-C)
  143  terminated

Data goes to stdout, progress and errors to stderr. `dnge COMMAND --help` lists
the options of a command, each with an example.
"""

EXAMPLES = {
    "score": "dnge score MODEL -o SCORES",
    "plan": "dnge plan MODEL -o plan.json --recipe prune/neurons --ratio 0.3",
    "apply": "dnge apply plan.json MODEL -o OUT",
    "compare": "dnge compare MODEL OUT --data heldout.txt",
    "curve": "dnge curve MODEL --ratios .1:.6:.1 -o curve.html",
    "compress": "dnge compress MODEL -o OUT --ratio 0.3",
    "generate": 'dnge generate MODEL "It was a" --max-new-tokens 40',
    "place": "dnge place MODEL -o lora.json --set trainable_params=4000000",
    "run": "dnge run jobs/prune-recover model_name_or_path=MODEL output_dir=RUN --dry-run",
    "vocabulary": "dnge vocabulary MODEL --data texts.txt -o OUT",
    "report": "dnge report OUT --html > report.html",
    "data": "dnge data show rows.jsonl --model MODEL",
    "data show": "dnge data show rows.jsonl --model MODEL",
    "recipes": "dnge recipes cp prune/default mine.yaml",
    "ls": "dnge recipes ls",
    "show": "dnge recipes show prune/default",
    "cp": "dnge recipes cp prune/default mine.yaml",
    "validate": "dnge recipes validate mine.yaml ratio=0.3",
    "schema": "dnge recipes schema prune > prune.schema.json",
    "env": "dnge env --json",
    "completion": "dnge completion bash > ~/.local/share/bash-completion/completions/dnge",
    "zoo": "dnge zoo -o zoo --jobs 2",
    "pretrain": "dnge pretrain --zoo zoo --jobs 2",
    "inr": "dnge inr mnist -o mnist.safetensors",
}
