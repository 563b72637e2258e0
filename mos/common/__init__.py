"""What the methods share: settings, a layer whose update is B A, and the model that puts such layers in."""
