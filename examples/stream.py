"""Read a stream token by token in constant memory, stop, and continue from the saved memory.

python examples/stream.py runs/book mybook.txt
"""

import argparse
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import retain

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", help="a run folder of text, e.g. from examples/train_on_text.py")
parser.add_argument("text", help="a UTF-8 text file to read")
parser.add_argument("--memory", default="memory.safetensors", help="the file for the memory after half of the text")
args = parser.parse_args()

rnn = retain.load(args.run)


@torch.inference_mode()
def read(text: bytes, memory: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return minus log2 of the probability of a text read from this memory on, and the memory after it."""
    bits, logits = 0.0, rnn.readout(memory)  # of the first byte
    for byte in text:
        bits -= float(logits.log_softmax(-1)[0, byte]) / math.log(2)
        logits, memory = rnn.step(torch.tensor([byte]), memory)
    return bits, memory


text = Path(args.text).read_bytes()
half = len(text) // 2
first, memory = read(text[:half], rnn.init_memory(1))

# The memory is the whole state of the stream: one small tensor, whatever the length. Another process can load it.
save_file({"memory": memory}, args.memory)
print(f"read {half} bytes; their memory of {memory.numel()} numbers is in {args.memory}")
second, _ = read(text[half:], load_file(args.memory)["memory"])
print(f"{(first + second) / len(text):.3f} bits per byte, read in two halves")

whole, _ = read(text, rnn.init_memory(1))
print(f"{whole / len(text):.3f} bits per byte, read at once")
