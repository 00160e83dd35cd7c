"""Programs that live where model-written code runs: standard library only, Python 3.9+."""
