"""``audit``: what the coordinator's store and blobs prove, read by somebody who need not trust the coordinator."""
