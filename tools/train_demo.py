"""Makes the demo model: a small Llama that tells stories, written as a Hugging Face directory.

    python tools/train_demo.py --text tinystories.txt --teacher stories15M-hf

The tokenizer is trained on the text alone; the model on the text and, where a teacher is given, on stories sampled from
it. Everything follows from ``--seed``, except the last bits that another CPU or another torch rounds otherwise. A run
that was killed resumes from ``--state`` when it is started again with the same arguments.

The sizes are options, so that a larger model of the same kind can be made for benchmarks (on a GPU in minutes):

    python tools/train_demo.py --text tinystories.txt --teacher stories15M-hf --out stories10M --device cuda \\
        --hidden 512 --ffn 1280 --streams 4096 --blocks 30 --steps 2000 --batch 64 --save-every 1000
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from demo.sampling import SamplingPlan, sample_stories
from demo.stories import Corpus, split_stories, train_tokenizer
from demo.training import Schedule, Shape, train

OUT = Path(__file__).resolve().parents[1] / "irlab" / "demo"


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="stories to train on")
    parser.add_argument("--teacher", type=Path, help="directory of a story model to sample more stories from")
    parser.add_argument("--out", type=Path, default=OUT, help="directory to write (default: %(default)s)")
    parser.add_argument(
        "--state", type=Path, default=Path(tempfile.gettempdir()) / "irlab-demo", help="checkpoints (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=600, help="batches to train on (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="windows a step (%(default)s)")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints (%(default)s)")
    parser.add_argument("--streams", type=int, default=256, help="stories sampled side by side (%(default)s)")
    parser.add_argument("--blocks", type=int, default=44, help="times each stream is extended (%(default)s)")
    parser.add_argument("--text-weight", type=int, default=2, help="readings of --text per sampled story (%(default)s)")
    parser.add_argument("--vocabulary", type=int, default=Shape.vocabulary, help="tokens (%(default)s)")
    parser.add_argument("--context", type=int, default=Shape.context, help="tokens a window (%(default)s)")
    parser.add_argument("--hidden", type=int, default=Shape.hidden, help="width of the model (%(default)s)")
    parser.add_argument("--ffn", type=int, default=Shape.ffn, help="width within the MLPs (%(default)s)")
    parser.add_argument("--layers", type=int, default=Shape.layers, help="(%(default)s)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(argv)


def make_demo(args: argparse.Namespace) -> None:
    """Tokenizer, text, training, output: in this order."""
    text = args.text.read_text(encoding="utf-8")
    stories = split_stories(text)
    tokenizer = train_tokenizer(stories, args.vocabulary, args.context)
    if args.teacher:
        plan = SamplingPlan(streams=args.streams, blocks=args.blocks, seed=args.seed)
        sampled = sample_stories(args.teacher, text, plan, args.state / "sampled.npy", args.device)
        stories = stories * args.text_weight + sampled
    corpus = Corpus.encode(stories, tokenizer, args.seed)
    print(f"{len(stories):,} stories, {sum(map(len, corpus.plain)):,} tokens", flush=True)
    schedule = Schedule(steps=args.steps, batch=args.batch, save_every=args.save_every)
    shape = Shape(args.hidden, args.ffn, args.layers, len(tokenizer), args.context)
    model = train(corpus, shape, schedule, args.seed, args.state / "training.safetensors", args.device)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"wrote {args.out}")


def main(argv: list[str] | None = None) -> None:
    """Makes the model that the command line asks for; what is wrong with the request is one line."""
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    try:
        make_demo(args)
    except (OSError, ValueError) as error:
        raise SystemExit(f"train_demo: {error}") from error


if __name__ == "__main__":
    main()
