"""Demo, benchmarks, accuracy studies and the threat-model evaluation."""
