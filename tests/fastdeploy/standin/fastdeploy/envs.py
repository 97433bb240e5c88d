"""The variables that the stand-in reads."""

FD_DISABLE_CHUNKED_PREFILL = False
FD_ENC_DEC_BLOCK_NUM = 2
