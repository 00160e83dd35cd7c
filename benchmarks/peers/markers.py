"""Words in the questions by which the provider tells runs apart. A child's prompt has neither."""

PLAY = "play the benchmark"  # the run that is measured
WARM_UP = "warm up"
