"""Teach LLaSA speech models new languages. The rooms, in the order of the flow, are in the README."""

import logging

# When transformers imports bitsandbytes, that warns of 4-bit CPU kernels it did not download; nothing here uses them.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
