"""The image: what goes into it and how large that is, building it, testing it, and carrying it to other machines."""
