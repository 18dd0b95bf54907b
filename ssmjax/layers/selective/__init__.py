"""Token mixers whose step, input and output maps depend on the token: Mamba and what is built like it."""
