"""Measured speed: MoS against LoRA, our evaluation against lm-evaluation-harness."""
