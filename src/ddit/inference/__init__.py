"""From a loaded model to images and texts: generators, scoring, editing, and what they share."""
