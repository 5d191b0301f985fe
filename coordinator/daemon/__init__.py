"""The running service: carries out what the state machine decides, keeps time, watches files and signals."""
