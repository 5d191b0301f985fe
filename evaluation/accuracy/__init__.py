"""The accuracy study: what federated training with a guarantee costs and gains, by the code that agents run."""
