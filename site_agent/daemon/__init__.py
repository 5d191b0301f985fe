"""The site agent: one long-lived process that dials the coordinator and takes part in rounds."""
