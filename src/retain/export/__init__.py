"""A trained RNN for programs that know nothing of retain: ONNX graphs, and a page for a browser."""
