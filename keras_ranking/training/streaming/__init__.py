"""Training, evaluation and scoring of logs in shards, in the memory of a few of them."""
