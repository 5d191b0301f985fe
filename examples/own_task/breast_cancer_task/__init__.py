"""An example task: its folder is what the digest covers, so keep the task's code and schema files in it."""
