"""A server of one RNN: many streams as one batch, and sessions whose memory is kept between calls."""
