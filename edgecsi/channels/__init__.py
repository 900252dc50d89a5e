"""Channels: where they come from (generator, files, shipped test set), how reconstructions are judged."""
