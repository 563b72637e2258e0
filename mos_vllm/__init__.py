"""MoS adapters in vLLM, served as they are saved: pools and indices are held, full factors exist only in the slots."""
