"""The networks: the RNN with its cells and readout, and the teacher with its encoders and decoder."""
