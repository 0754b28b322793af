"""What a method changes: the loss of a batch. Everything else, the loop owns."""
