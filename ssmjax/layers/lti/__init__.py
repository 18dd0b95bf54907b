"""Token mixers that are linear and time-invariant: S4, S4D, DSS, S4ND, S5 and the LRU."""
