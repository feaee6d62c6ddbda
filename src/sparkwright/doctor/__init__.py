"""What is here and whether it is well: the image's inventory, and the checks of host, software and GPU."""
