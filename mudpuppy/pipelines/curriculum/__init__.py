"""The curriculum: SFT, then DPO for the voice, topic by topic, each stage kept or rolled back."""
