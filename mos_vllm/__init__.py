"""MoS adapters in vLLM, served as they are saved: pools and indices are held, full factors exist only in the slots.

vLLM finds `register` through its entry point group `vllm.general_plugins` and calls it in each of its processes. See
docs/serving.md.
"""

import logging


def register() -> None:
    """Make this process's vLLM take MoS adapters. Never raises: vLLM does not catch it and would not start."""
    try:
        from mos_vllm.install import install

        install()
    except Exception:
        logging.getLogger("vllm.mos").exception("MoS adapters cannot be served; LoRA adapters can.")
