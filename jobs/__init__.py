"""A trainer's job folder: what it trained, how it drew its samples, and those samples again."""
