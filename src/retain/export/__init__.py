"""Export of a trained RNN to programs without retain: ONNX graphs, and a page for a browser."""
