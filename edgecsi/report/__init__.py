"""Results as people look at them: plain text for a terminal, pictures. Nothing here measures."""
