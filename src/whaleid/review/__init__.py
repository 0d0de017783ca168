"""`whaleid review`: a local page on which a person decides of pairs of images that the networks doubt."""
