"""One run: who it is, its base model, its training, its evaluation."""
