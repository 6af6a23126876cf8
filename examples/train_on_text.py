"""Train an RNN on your own text, score it, and generate text.

python examples/train_on_text.py mybook.txt --budget 240s --out runs/book
"""

import argparse
import dataclasses

import retain
from retain.inference.text import generate_text

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("text", help="a UTF-8 text file")
parser.add_argument("--budget", default="240s", help="length of the training, e.g. 240s, 5000steps, 20Mtokens")
parser.add_argument("--out", default="runs/book", help="a new folder for the run")
args = parser.parse_args()

# A preset is a function that returns a whole configuration. It is frozen, so `replace` makes a changed copy of it.
config = retain.PRESETS["text"]()
config = dataclasses.replace(config, budget=args.budget, data=retain.data_config("text", path=args.text))

# SMT, then DMT, each for its share of the budget. The model with the best validation score is kept.
retain.train(config, args.out)

# The test split is the last 5 % of the text, which the RNN was not trained on.
run = retain.load_run(args.out)
data = retain.load_data(config.data)
scores = retain.evaluate(run.rnn, None, data.windows("test", batch_size=64))
print(f"{scores['bits_per_token']:.3f} bits per byte on the test split")

print(generate_text(run, "It was", 300, temperature=0.7, seed=1)[0])
