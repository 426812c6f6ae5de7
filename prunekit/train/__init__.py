"""Fine-tuning under pruning: sparse importance, learned fusion, LoRA and trained compressors (``task=train``)."""
