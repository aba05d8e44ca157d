"""What was learned: previews of base and tuned model, and the loss on images that are not trained on."""
