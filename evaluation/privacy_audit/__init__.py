"""An audit of differential privacy in one run, on the training code that sites run, with broken variants of it."""
