"""What a run's checkpoints learned and cost, and which of them its file is made of."""
